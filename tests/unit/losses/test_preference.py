"""Loss types as functions of numbers: what several turns are, what the rewards are, and TRL's and Liger's values."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from megatron_longpo.config.loss_types import LOSS_TYPES
from megatron_longpo.config.schema import LossType, ObjectiveConfig
from megatron_longpo.losses.metrics import metric_means, metric_sums
from megatron_longpo.losses.objective import ObjectiveOutput, PairTables, PolicySums, longpo_objective
from megatron_longpo.losses.preference import PREFERENCE_LOSSES, Answers, preference_loss

# a document of two turns and one of one; log-probs of (chosen, rejected) in the long chat and in the short ones
LONG = [[[-10.0, -12.0], [-20.0, -18.0]], [[-5.0, -4.0], [0.0, 0.0]]]
SHORT = [[[-6.0, -14.0], [-9.0, -11.0]], [[-3.0, -4.5], [0.0, 0.0]]]
SHORT_REFERENCE = [[[-8.0, -13.0], [-12.0, -10.5]], [[-3.5, -4.0], [math.nan, math.nan]]]
LONG_REFERENCE = [[[-11.0, -13.0], [-21.0, -18.5]], [[-6.0, -4.5], [math.nan, math.nan]]]
MASK = [[1.0, 1.0], [1.0, 0.0]]
TOKENS = [[[4.0, 5.0], [6.0, 5.0]], [[3.0, 2.0], [0.0, 0.0]]]


def of(**settings: Any) -> tuple[ObjectiveOutput, PolicySums, PairTables]:
    """The objective of the two documents."""
    long, short, reference, long_reference, mask, tokens = (
        torch.tensor(value, dtype=torch.float64) for value in (LONG, SHORT, SHORT_REFERENCE, LONG_REFERENCE, MASK, TOKENS)
    )
    config = ObjectiveConfig(**{"nll_weight": 0.0, "preference_weight": 1.0, "beta": 0.5} | settings)
    reads_short = LOSS_TYPES[config.loss_type].short
    if reads_short:
        long[..., 1] = 0.0
    sums = PolicySums(torch.zeros(2, dtype=torch.float64), long.requires_grad_(), short.requires_grad_())
    long_tokens = tokens * torch.tensor([1.0, 0.0 if reads_short else 1.0])
    tables = PairTables(
        torch.zeros(2), mask, long_tokens, tokens * reads_short, reference,
        long_reference if reads_short else torch.full_like(reference, math.nan),
    )  # fmt: skip
    return longpo_objective(sums, tables, config), sums, tables


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def odds(mean: float) -> float:
    return math.log(math.exp(mean) / (1 - math.exp(mean)))


def test_the_settings_of_every_loss_type_are_known_where_they_are_computed() -> None:
    assert set(get_args(LossType)) == LOSS_TYPES.keys()
    assert PREFERENCE_LOSSES.keys() == {name for name, traits in LOSS_TYPES.items() if not traits.distribution}


@pytest.mark.parametrize(("aggregation", "first"), [("sum", 0.5 * (1.5 + 4.0)), ("per-turn", 0.5 * (1.5 + 4.0) / 2)])
def test_a_constraint_is_beta_times_the_divergence_of_the_turns(aggregation: Any, first: float) -> None:
    _, sums, tables = of()
    divergence = torch.tensor([[1.5, 4.0], [2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    sums = PolicySums(sums.nll, sums.answers, sums.short_answers, divergence)
    config = ObjectiveConfig(loss_type="sft-s2l", beta=0.5, preference_weight=0.25, nll_weight=0.0, turn_aggregation=aggregation)
    output = longpo_objective(sums, tables, config)
    assert output.preference.tolist() == pytest.approx([first, 0.5 * 2.0])
    assert output.loss.tolist() == pytest.approx([0.25 * first, 0.25 * 0.5 * 2.0])
    means = metric_means(metric_sums(output, sums, tables, 2), 2)
    assert means["kl/long_to_short"] == pytest.approx(7.5 / 13)
    assert "rewards/chosen" not in means


@pytest.mark.parametrize(
    ("loss_type", "together", "apart"),
    [
        # ratios on the short reference: chosen -2 and -8, then -1.5; rejected 1 and -7.5, then 0
        ("hinge", 1 - 0.5 * (-10 + 6.5), [1 - 0.5 * (-2 - 1), 1 - 0.5 * (-8 + 7.5)]),
        ("ipo", (-10 / 10 + 6.5 / 10 - 1) ** 2, [(-2 / 4 - 1 / 5 - 1) ** 2, (-8 / 6 + 7.5 / 5 - 1) ** 2]),
        (
            "simpo",
            softplus(-(0.5 * (-30 / 10 + 30 / 10) - 0.3)),
            [softplus(-(0.5 * (-10 / 4 + 12 / 5) - 0.3)), softplus(-(0.5 * (-20 / 6 + 18 / 5) - 0.3))],
        ),
    ],
)
def test_turns_are_one_pair_of_answers_or_a_pair_each(loss_type: LossType, together: float, apart: list[float]) -> None:
    summed, *_ = of(loss_type=loss_type, simpo_gamma=0.3)
    per_turn, *_ = of(loss_type=loss_type, simpo_gamma=0.3, turn_aggregation="per-turn")
    assert summed.preference[0].item() == pytest.approx(together, rel=1e-12)
    assert per_turn.preference[0].item() == pytest.approx(sum(apart) / 2, rel=1e-12)
    assert per_turn.preference[1].item() == pytest.approx(summed.preference[1].item(), rel=1e-12), "one turn: the same"


@pytest.mark.parametrize(
    ("loss_type", "default_alpha", "rewards"),
    [
        # rewards on short contexts (chosen, rejected) and on the long one (chosen) of the first document's answers together
        ("solo-dpo", 3.0, (0.5 * (-15 + 20), 0.5 * (-25 + 23.5), 0.5 * (-30 + 32))),
        ("solo-simpo", 1.0, (0.5 * -15 / 10, 0.5 * -25 / 10, 0.5 * -30 / 10)),
        ("solo-orpo", 1.0, (odds(-1.5), odds(-2.5), odds(-3.0))),
    ],
)
def test_solo_prefers_on_short_contexts_and_aligns_the_chosen_answer(
    loss_type: LossType, default_alpha: float, rewards: tuple[float, float, float]
) -> None:
    chosen, rejected, long = rewards
    margin = chosen - rejected - (0.3 if loss_type == "solo-simpo" else 0.0)
    preferred = softplus(-margin) * (0.5 if loss_type == "solo-orpo" else 1.0)
    for alpha, weight in ((None, default_alpha), (0.25, 0.25), (0.0, 0.0)):
        output, *_ = of(loss_type=loss_type, simpo_gamma=0.3, solo_alpha=alpha)
        assert output.alignment[0].item() == pytest.approx(abs(chosen - long), rel=1e-12)
        assert output.preference[0].item() == pytest.approx(preferred + weight * abs(chosen - long), rel=1e-12)


@pytest.mark.parametrize("loss_type", PREFERENCE_LOSSES)
@pytest.mark.parametrize("aggregation", ["sum", "per-turn"])
def test_gradients_are_finite_and_leave_absent_turns_alone(loss_type: LossType, aggregation: Any) -> None:
    output, sums, _ = of(loss_type=loss_type, turn_aggregation=aggregation)
    output.loss.sum().backward()
    read = [sums.answers.grad, sums.short_answers.grad] if LOSS_TYPES[loss_type].short else [sums.answers.grad]
    for gradient in read:
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient[1, 1].tolist() == [0.0, 0.0]
        assert gradient[0].abs().sum() > 0


def test_metrics_of_solo_are_those_of_what_was_read() -> None:
    output, sums, tables = of(loss_type="solo-dpo")
    means = metric_means(metric_sums(output, sums, tables, 2), 2)
    assert "logps/rejected" not in means
    assert means["logps/chosen"] == -35 / 2
    assert (means["logps/short_chosen"], means["logps/short_rejected"]) == (-18 / 2, -29.5 / 2)
    assert means["rewards/chosen"] == pytest.approx(0.5 * (5 + 0.5) / 2)
    assert means["rewards/rejected"] == pytest.approx(0.5 * (-1.5 - 0.5) / 2)
    assert means["alignment_loss"] == pytest.approx(0.5 * (abs(5 - 2) + abs(0.5 - 1)) / 2)
    # reference on the short contexts minus policy on the long one, over 4 + 6 + 3 chosen tokens
    assert means["kl/short_to_long"] == pytest.approx(((-20 + 30) + (-3.5 + 5)) / 13)


def test_the_odds_ratio_is_trls_and_ligers() -> None:
    from liger_kernel.chunked_loss.orpo_loss import LigerFusedLinearORPOFunction
    from trl.experimental.orpo import ORPOTrainer

    logps = -torch.rand(6, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 40
    tokens = torch.tensor([[[7.0, 3.0]]] * 6)
    config = ObjectiveConfig(loss_type="solo-orpo", beta=0.3)
    ours = preference_loss(Answers(logps, torch.full_like(logps, math.nan), tokens), torch.ones(6, 1), config)
    means = (logps / tokens)[:, 0].unbind(-1)
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    torch.testing.assert_close(-ORPOTrainer.odds_ratio_loss(trainer, *means)[0].double(), ours, rtol=1e-5, atol=1e-7)
    theirs = LigerFusedLinearORPOFunction.preference_loss_fn(*means, torch.zeros(12, 1), beta=0.3)[0]
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-12)


def test_odds_of_a_certain_answer_are_bounded() -> None:
    logps = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True)
    config = ObjectiveConfig(loss_type="solo-orpo")
    preference_loss(Answers(logps, logps, torch.ones_like(logps)), torch.ones(1, 1), config).sum().backward()
    assert logps.grad is not None
    assert logps.grad.isfinite().all()
