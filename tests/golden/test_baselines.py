"""Presets and options of the objective against formulas written out in float64, and against the DPO losses of TRL and Liger."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.config.cli import parse_args
from megatron_longpo.config.schema import ObjectiveConfig, RunConfig
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.pair import PreferencePair
from megatron_longpo.data.sampler import PreferenceStream
from megatron_longpo.losses.preference import Answers, preference_loss, sigmoid_loss
from tests.golden.test_objective_oracle import assert_gradients
from tests.support.layouts import read_dump, train_and_dump
from tests.support.oracle import load_hf, side_logps, token_logps
from tests.support.scenario import ROTARY_BASE, Scenario, fill_reference, make_scenario
from tests.support.workers import Workers

BATCH = 3


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a set of flags means, written from the method's description and not from the presets."""

    flags: tuple[str, ...]
    beta: float = 0.1
    nll_weight: float = 1.0
    preference_weight: float = 0.01
    scope: str = "all"
    context: str = "short"
    per_turn: bool = False
    smoothing: float = 0.0


CASES = {
    "paper": Expected(("--preset", "paper")),
    "release": Expected(("--preset", "release"), beta=0.01),
    "sft": Expected(("--preset", "sft"), preference_weight=0.0, scope="answers"),
    "dpo": Expected(("--preset", "dpo"), nll_weight=0.0, preference_weight=1.0, context="long"),
    "longpo-no-s2l": Expected(("--preset", "longpo-no-s2l"), context="long"),
    "longpo-no-nll": Expected(("--preset", "longpo-no-nll"), nll_weight=0.0),
    "per-turn": Expected(("--turn-aggregation", "per-turn", "--preference-weight", "1"), per_turn=True, preference_weight=1.0),
    "no-template": Expected(("--nll-scope", "no-template"), scope="no-template"),
    "answers": Expected(("--nll-scope", "answers"), scope="answers"),
    "smoothed": Expected(("--label-smoothing", "0.2", "--preference-weight", "1"), smoothing=0.2, preference_weight=1.0),
    "smoothed-per-turn": Expected(
        ("--label-smoothing", "0.2", "--turn-aggregation", "per-turn", "--nll-weight", "0"),
        smoothing=0.2, per_turn=True, nll_weight=0.0,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory, workers: Workers) -> Scenario:
    made = make_scenario(tmp_path_factory.mktemp("baselines"), "llama", num_documents=4, num_words=40, num_hidden_layers=2)
    for context in ("short", "long"):
        workers.run(1, fill_reference, made, context)
    return made


@dataclasses.dataclass(frozen=True)
class Models:
    """The policy, the reference, and the pairs of the first batch."""

    policy: Any
    reference: Any
    pairs: list[PreferencePair]


@pytest.fixture(scope="module")
def models(scenario: Scenario) -> Models:
    return Models(load_hf(scenario.hf, ROTARY_BASE), load_hf(scenario.hf), first_batch(scenario))


def config_of(scenario: Scenario, flags: tuple[str, ...]) -> RunConfig:
    """A run as a user gives it; only the parts that this test does not look at are the scenario's."""
    inputs = ["--pretrained-checkpoint", str(scenario.native), "--data-path", str(scenario.prefix), "--train-iters", "1"]
    with contextlib.redirect_stderr(io.StringIO()):
        given = parse_args([*inputs, "--rotary-base", str(ROTARY_BASE), *flags], world_size=1)
    plain = scenario.config()
    training = dataclasses.replace(plain.training, global_batch_size=BATCH)
    return dataclasses.replace(given, optimizer=plain.optimizer, training=training)


def targets_of(pair: PreferencePair, scope: str) -> list[int]:
    """Tokens of the chosen sequence that the NLL counts; the first token of all is nobody's target."""
    everything = range(1, len(pair.chosen.input_ids))
    if scope == "all":
        return list(everything)
    spans = pair.chosen.answer_spans if scope == "answers" else pair.content_spans
    return [token for token in everything if any(start <= token < end for start, end in spans)]


def neg_log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return torch.log1p(torch.exp(-x))


def terms(models: Models, pair: PreferencePair, case: Expected) -> dict[str, torch.Tensor]:
    """One document's objective and parts."""
    chosen = token_logps(models.policy, pair.chosen.input_ids)
    targets = targets_of(pair, case.scope)
    nll = -sum(chosen[token - 1] for token in targets) / len(targets)
    with torch.no_grad():
        if case.context == "long":
            reference = [side_logps(models.reference, side) for side in (pair.chosen, pair.rejected)]
        else:
            reference = [
                torch.stack([side_logps(models.reference, turn)[0] for turn in turns])
                for turns in (pair.short_chosen, pair.short_rejected)
            ]
    policy = [side_logps(models.policy, side) for side in (pair.chosen, pair.rejected)]
    rewards = [case.beta * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True)]
    margins = rewards[0] - rewards[1]
    if not case.per_turn:
        margins = margins.sum()[None]
    kept, flipped = neg_log_sigmoid(margins), neg_log_sigmoid(-margins)
    preference = ((1 - case.smoothing) * kept + case.smoothing * flipped).mean()
    return {
        "loss": case.nll_weight * nll + case.preference_weight * preference,
        "nll_loss": nll,
        "preference_loss": preference,
        "rewards/chosen": rewards[0].sum(),
        "rewards/rejected": rewards[1].sum(),
        "logps/chosen": policy[0].sum(),
        "logps/rejected": policy[1].sum(),
    }


@pytest.mark.parametrize("name", CASES)
def test_presets_and_options_equal_their_formula(
    name: str, scenario: Scenario, models: Models, workers: Workers, tmp_path: Path
) -> None:
    case = CASES[name]
    (found,) = workers.run(1, train_and_dump, config_of(scenario, case.flags), str(tmp_path), 1)[0]["metrics"]
    models.policy.zero_grad()
    parts = [terms(models, pair, case) for pair in models.pairs]
    expected = {part: torch.stack([document[part] for document in parts]).mean() for part in parts[0]}
    expected["loss"].backward()
    unused = set()
    if not case.nll_weight:
        unused |= {"nll_loss"}  # the rows are not read
    if not case.preference_weight:
        unused |= {"preference_loss", "rewards/chosen", "rewards/rejected", "logps/rejected"}  # no reference, no rejected side
    for part in expected.keys() - unused:
        bound = case.beta * 1e-5 * 2000 if part.startswith("rewards/") else 1e-5 * max(1.0, abs(expected[part].item()))
        assert found[part] == pytest.approx(expected[part].item(), abs=bound), part
    gradients = {parameter: value.grad for parameter, value in models.policy.named_parameters()}
    assert_gradients(read_dump(tmp_path / "gradients"), gradients)


def test_presets_set_the_optimizers_of_their_sources(scenario: Scenario) -> None:
    def optimizer(preset: str) -> Any:
        inputs = ["--pretrained-checkpoint", str(scenario.native), "--data-path", str(scenario.prefix), "--train-iters", "1"]
        return parse_args([*inputs, "--preset", preset], world_size=1).optimizer

    assert (optimizer("paper").optimizer, optimizer("paper").lr) == ("adam", 5e-7)
    assert (optimizer("release").optimizer, optimizer("release").lr) == ("rmsprop", 5e-7)
    assert optimizer("sft").lr == 2e-5


def margins_and_logps() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(-torch.rand(6, generator=generator, dtype=torch.float64) * 40 for _ in range(4))


def ours(logps: tuple[torch.Tensor, ...], beta: float, smoothing: float = 0.0) -> torch.Tensor:
    """Our loss of pairs of one turn, from (policy chosen, policy rejected, reference chosen, reference rejected)."""
    policy, reference = (torch.stack(sides, dim=-1)[:, None] for sides in (logps[:2], logps[2:]))
    answers = Answers(policy, reference, torch.ones_like(policy))
    return preference_loss(answers, torch.ones(len(logps[0]), 1), ObjectiveConfig(beta=beta, label_smoothing=smoothing))


def test_the_loss_equals_ligers() -> None:
    from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction

    logps = margins_and_logps()
    full_target = torch.zeros(12, 1)
    theirs = LigerFusedLinearDPOFunction.preference_loss_fn(*logps[:2], full_target, *logps[2:], beta=0.3)
    assert ours(logps, 0.3).mean().item() == pytest.approx(theirs[0].item(), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_label_smoothing_equals_trls_and_is_ligers_robust_loss_up_to_its_scale(smoothing: float) -> None:
    from types import SimpleNamespace

    from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction
    from trl.experimental.cpo import CPOTrainer

    logps = margins_and_logps()
    robust = LigerFusedLinearDPOFunction.preference_loss_fn(
        *logps[:2], torch.zeros(12, 1), *logps[2:], beta=0.3, loss_type="robust", label_smoothing=smoothing
    )[0]
    # robust DPO weighs the flipped term with a minus and divides; the smoothed one weighs it with a plus
    x = 0.3 * (logps[0] - logps[2] - logps[1] + logps[3])
    clean, flipped = sigmoid_loss(x), sigmoid_loss(-x)
    assert ((1 - smoothing) * clean - smoothing * flipped).mean().item() / (1 - 2 * smoothing) == pytest.approx(
        robust.item(), rel=1e-12
    )
    # TRL's CPO is the same conservative sigmoid on a margin without a reference
    trainer = SimpleNamespace(
        alpha=0.0, beta=0.3, label_smoothing=smoothing, loss_type="sigmoid", accelerator=SimpleNamespace(device="cpu")
    )
    losses, _, _ = CPOTrainer.cpo_loss(trainer, logps[0], logps[1])
    zeros = torch.zeros_like(logps[0])
    torch.testing.assert_close(ours((logps[0], logps[1], zeros, zeros), 0.3, smoothing), losses, rtol=1e-12, atol=0)


@pytest.fixture(scope="module")
def one_turn(tmp_path_factory: pytest.TempPathFactory, workers: Workers) -> Scenario:
    folder = tmp_path_factory.mktemp("one-turn")
    made = make_scenario(folder, "qwen2", num_documents=4, num_turns=1, num_words=40, num_hidden_layers=2)
    workers.run(1, fill_reference, made, "long")
    return made


def first_batch(scenario: Scenario) -> list[PreferencePair]:
    """Pairs of the first iteration."""
    dataset = PreferenceDataset(str(scenario.prefix))
    stream = PreferenceStream([len(dataset)], None, 42)
    return [dataset[stream.entry(index)[1]] for index in range(BATCH)]


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
def test_the_dpo_preset_equals_trls_trainer(loss_type: str, one_turn: Scenario, workers: Workers, tmp_path: Path) -> None:
    """One turn, a long reference with its own RoPE base: then LongPO's preference term is DPO, as TRL computes it."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    config = config_of(one_turn, ("--preset", "dpo", "--loss-type", loss_type))
    (found,) = workers.run(1, train_and_dump, config, str(tmp_path / "ours"), 1)[0]["metrics"]
    examples = []
    for pair in first_batch(one_turn):
        (start, end), (other_start, other_end) = pair.chosen.answer_spans[0], pair.rejected.answer_spans[0]
        assert start == other_start
        chosen, rejected = pair.chosen.input_ids.tolist(), pair.rejected.input_ids.tolist()
        examples.append(
            {"prompt_ids": chosen[:start], "chosen_ids": chosen[start:end], "rejected_ids": rejected[start:other_end]}
        )
    trainer = DPOTrainer(
        model=load_hf(one_turn.hf, ROTARY_BASE),
        ref_model=load_hf(one_turn.hf),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            beta=config.objective.beta,
            loss_type=loss_type,
            report_to=[],
            use_cpu=True,
            bf16=False,
            max_length=None,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=AutoTokenizer.from_pretrained(one_turn.hf),
    )
    batch = DataCollatorForPreference(pad_token_id=0)(examples)
    theirs = trainer.compute_loss(trainer.model, batch).item()
    assert found["loss"] == pytest.approx(theirs, rel=1e-5)
    agreed = {"sigmoid": math.log(2), "hinge": 1.0, "ipo": 25.0}[loss_type]
    assert not math.isclose(theirs, agreed, abs_tol=1e-2), "policy and reference agree: the comparison would say little"
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"):
        assert found[name] == pytest.approx(trainer._metrics["eval"][name][-1], rel=1e-4), name


def test_simpo_equals_trls(one_turn: Scenario, workers: Workers, tmp_path: Path) -> None:
    """Loss and rewards of one turn, from a model's logits, as TRL's trainer makes them."""
    from types import SimpleNamespace

    from trl.experimental.cpo import CPOTrainer

    flags = ("--loss-type", "simpo", "--beta", "2", "--simpo-gamma", "0.7", "--label-smoothing", "0.1")
    config = config_of(one_turn, (*flags, "--preference-weight", "1", "--nll-weight", "0"))
    (found,) = workers.run(1, train_and_dump, config, str(tmp_path), 1)[0]["metrics"]
    trainer = SimpleNamespace(
        alpha=0.0, beta=2.0, label_smoothing=0.1, simpo_gamma=0.7, loss_type="simpo", accelerator=SimpleNamespace(device="cpu")
    )
    model, theirs = load_hf(one_turn.hf, ROTARY_BASE), []
    for pair in first_batch(one_turn):
        logps = []
        for side in (pair.chosen, pair.rejected):
            tokens, labels = (torch.as_tensor(side.input_ids, dtype=torch.int64)[None].clone() for _ in range(2))
            labels[:, : side.answer_spans[0][0]], labels[:, side.answer_spans[0][1] :] = -100, -100
            with torch.no_grad():
                logits = model(input_ids=tokens).logits
            logps.append(CPOTrainer.get_batch_logps(logits, labels, average_log_prob=True))
        theirs.append(CPOTrainer.cpo_loss(trainer, *logps))
    for name, values in zip(("loss", "rewards/chosen", "rewards/rejected"), zip(*theirs, strict=True), strict=True):
        assert found[name] == pytest.approx(torch.cat(values).mean().item(), rel=1e-5), name
