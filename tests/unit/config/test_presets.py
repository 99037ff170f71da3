"""Laws of the presets, against the numbers of the paper and of the public code written out here."""

import pytest

from megatron_longpo.config.cli import parse_args
from megatron_longpo.config.fields import fields_by_name
from megatron_longpo.config.presets import PRESETS

RUN = ["--pretrained-checkpoint", "model", "--data-path", "pairs", "--num-epochs", "1"]


def objective_of(*flags: str):
    config = parse_args([*RUN, *flags], world_size=1)
    return config.objective, config.reference, config.optimizer


@pytest.mark.parametrize(("preset", "values"), PRESETS.items())
def test_a_preset_names_settings_that_exist_with_values_of_their_type(preset, values):
    for name, value in values.items():
        info = fields_by_name()[name]
        assert type(value) is info.kind
        assert not info.choices or value in info.choices


def test_the_defaults_are_the_paper_s():
    objective, reference, optimizer = objective_of()
    assert (objective.beta, objective.preference_weight, objective.nll_weight) == (0.1, 0.01, 1.0)
    assert (optimizer.optimizer, optimizer.lr, reference.reference_context) == ("adam", 5e-7, "short")
    paper = objective_of("--preset", "paper")
    assert paper[:2] == (objective, reference)
    # None means 0.1 as long as no number of warm-up iterations is given.
    assert {**vars(optimizer), "lr_warmup_fraction": 0.1} == vars(paper[2])


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        # beta, preference weight, NLL weight, NLL scope, context of the reference, optimizer, learning rate
        ("release", (0.01, 0.01, 1.0, "all", "short", "rmsprop", 5e-7)),
        ("sft", (0.1, 0.0, 1.0, "answers", "short", "adam", 2e-5)),
        ("dpo", (0.1, 1.0, 0.0, "all", "long", "adam", 5e-7)),
        ("longpo-no-s2l", (0.1, 0.01, 1.0, "all", "long", "adam", 5e-7)),
        ("longpo-no-nll", (0.1, 0.01, 0.0, "all", "short", "adam", 5e-7)),
    ],
)
def test_a_preset_is_the_published_setting(preset, expected):
    objective, reference, optimizer = objective_of("--preset", preset)
    found = (
        *(objective.beta, objective.preference_weight, objective.nll_weight, objective.nll_scope),
        *(reference.reference_context, optimizer.optimizer, optimizer.lr),
    )
    assert found == expected


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        # loss type, beta, gamma, alpha, preference weight, NLL weight, NLL scope, reference
        ("simpo", ("simpo", 2.0, 1.0, None, 1.0, 0.0, "all", "cache")),
        ("solo-dpo", ("solo-dpo", 0.1, 0.5, None, 1.0, 0.0, "all", "cache")),
        ("solo-simpo", ("solo-simpo", 2.0, 1.0, None, 1.0, 0.0, "all", "cache")),
        ("solo-orpo", ("solo-orpo", 0.1, 0.5, None, 1.0, 1.0, "answers", "cache")),
        ("sft-s2l", ("sft-s2l", 0.1, 0.5, None, 1.0, 1.0, "answers", "live")),
    ],
)
def test_a_preset_of_later_work_is_that_method(preset, expected):
    objective, reference, _ = objective_of("--preset", preset)
    found = (
        *(objective.loss_type, objective.beta, objective.simpo_gamma, objective.solo_alpha, objective.preference_weight),
        *(objective.nll_weight, objective.nll_scope, reference.reference),
    )
    assert found == expected
