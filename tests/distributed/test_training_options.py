"""Options that change how a step is computed, but not what: packing, micro-batches, recomputation, clipping, validation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.config.schema import RunConfig
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.sampler import PreferenceStream
from tests.distributed.test_layout_parity import (
    TOLERANCE,
    Straight,
    assert_same_metrics,
    assert_same_tensors,
    assert_same_training,
    config_for,
    train_straight,
)
from tests.support.launch import Nursery
from tests.support.layouts import Layout, read_dump, train_and_dump
from tests.support.scenario import Scenario
from tests.support.workers import Workers

ONE = Layout()


@pytest.fixture(scope="module")
def straight(llama: Scenario, workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Default options."""
    return train_straight(llama, workers, tmp_path_factory, iterations=2)


PACKING = {"no-sharing": {"prefix_sharing": False}, "two-pairs": {"micro_batch_size": 2}, "four-pairs": {"micro_batch_size": 4}}
RECOMPUTE = {
    "full": {"recompute_granularity": "full", "recompute_num_layers": 1},
    "full-by-two": {"recompute_granularity": "full", "recompute_num_layers": 2},
    "full-keep": {"recompute_granularity": "full", "recompute_attention": False},
    "block": {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1},
    "block-keep": {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": 3,
        "recompute_attention": False,
    },
    "selective": {"recompute_granularity": "selective"},
}
SAME_STEP = [
    *[(layout, name, PACKING[name]) for layout in (ONE, Layout(cp=2), Layout(pp=2)) for name in ("no-sharing", "two-pairs")],
    (ONE, "four-pairs", PACKING["four-pairs"]),
    (Layout(dp=2), "two-pairs", PACKING["two-pairs"]),
    (Layout(tp=2, sp=True), "no-sharing", PACKING["no-sharing"]),
    (Layout(pp=2, vpp_layers=1), "no-sharing-two-pairs", PACKING["no-sharing"] | PACKING["two-pairs"]),
    *[(ONE, name, options) for name, options in RECOMPUTE.items()],
    *[
        (layout, name, RECOMPUTE[name])
        for layout in (Layout(tp=2, sp=True), Layout(pp=2))
        for name in ("full", "full-keep", "block", "selective")
    ],
    *[(Layout(cp=2), name, RECOMPUTE[name]) for name in ("selective", "full-keep")],
    (Layout(pp=2, vpp_layers=1), "full-keep", RECOMPUTE["full-keep"]),
    (ONE, "small-chunks", {"logit_chunk_size": 7}),
]


@pytest.mark.parametrize(("layout", "options"), [pytest.param(a, c, id=f"{a}-{b}") for a, b, c in SAME_STEP])
def test_the_same_step_in_another_way(
    layout: Layout, options: dict[str, Any], llama: Scenario, straight: Straight, workers: Workers, tmp_path: Path
) -> None:
    found = workers.run(layout.world_size, train_and_dump, config_for(llama, layout, **options), str(tmp_path), 2)
    assert_same_training(straight, found, tmp_path)


def test_recomputation_runs_again_what_it_says(llama: Scenario, workers: Workers, tmp_path: Path) -> None:
    """The options above change something. Forward runs of (attention's blocks, gated units), in units of a whole forward."""
    names = ("full", "full-keep", "block", "block-keep", "selective")
    runs = {
        name: workers.run(1, count_forward_runs, config_for(llama, ONE, **options), str(tmp_path))[0]
        for name, options in {"none": {}, **{name: RECOMPUTE[name] for name in names}}.items()
    }
    once = runs["none"]
    assert {name: (found[0] / once[0], found[1] / once[1]) for name, found in runs.items()} == {
        "none": (1, 1),
        "full": (2, 2),
        "full-keep": (1, 2),
        "block": (1.25, 1.25),
        "block-keep": (1, 1.75),
        "selective": (1, 2),
    }


def count_forward_runs(config: RunConfig, folder: str) -> tuple[int, int]:
    """Attention's blocks and gated units that one iteration computes forward (runs inside a worker)."""
    from megatron_longpo.models import attention, swiglu

    counts = {"blocks": 0, "units": 0}
    block, unit = attention.block_forward, swiglu.SwiGLU.forward

    def counted_block(*arguments: Any, **keywords: Any) -> Any:
        counts["blocks"] += 1
        return block(*arguments, **keywords)

    def counted_unit(self: Any, states: Any) -> Any:
        counts["units"] += 1
        return unit(self, states)

    attention.block_forward, swiglu.SwiGLU.forward = counted_block, counted_unit  # type: ignore[method-assign]
    try:
        train_and_dump(config, folder, 1)
    finally:
        attention.block_forward, swiglu.SwiGLU.forward = block, unit  # type: ignore[method-assign]
    return counts["blocks"], counts["units"]


@pytest.mark.parametrize(
    "layout",
    [Layout(tp=2), Layout(tp=2, sp=True), Layout(pp=2), Layout(cp=2), Layout(dp=2), Layout(dp=2, distributed_optimizer=True)],
    ids=str,
)
def test_clipping_sees_the_norm_of_the_whole_gradient(layout: Layout, llama: Scenario, workers: Workers, tmp_path: Path) -> None:
    settings = {"clip_grad": 0.05, "optimizer": "adam", "lr": 1e-3, "adam_eps": 1e-3}
    config = config_for(llama, layout, **settings)
    one = workers.run(1, train_and_dump, config_for(llama, ONE, **settings), str(tmp_path / "one"), 2)[0]["metrics"]
    found = workers.run(layout.world_size, train_and_dump, config, str(tmp_path / "many"), 2)[0]["metrics"]
    total = math.sqrt(sum(tensor.double().square().sum().item() for tensor in read_dump(tmp_path / "one" / "gradients").values()))
    assert total > 10 * settings["clip_grad"], "nothing is clipped"
    assert one[0]["grad_norm"] == pytest.approx(total, rel=1e-5)
    free = workers.run(
        layout.world_size, train_and_dump, config_for(llama, layout, **settings | {"clip_grad": 0.0}), str(tmp_path / "free"), 1
    )
    assert free[0]["metrics"][0]["grad_norm"] == pytest.approx(total, rel=1e-5), "the norm is a metric where nothing is clipped"
    for before, after in zip(one, found, strict=True):
        assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-5)
    assert_same_tensors(tmp_path / "one" / "weights", tmp_path / "many" / "weights", TOLERANCE)


# ---- whole runs ----


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    started = Nursery(tmp_path_factory.mktemp("logs"))
    yield started
    started.close()


TRAIN = "pretrain_longpo.py"
VALIDATED = {
    ONE: (),
    Layout(dp=2): ("--recompute-granularity", "full", "--no-recompute-attention"),
    Layout(cp=2): ("--context-parallel-size", 2, "--recompute-granularity", "selective"),
    Layout(pp=2): ("--pipeline-model-parallel-size", 2),
    Layout(pp=2, vpp_layers=1): ("--pipeline-model-parallel-size", 2, "--num-layers-per-virtual-pipeline-stage", 1),
    Layout(tp=2, sp=True): ("--tensor-model-parallel-size", 2, "--sequence-parallel", "--recompute-granularity", "full"),
}


def flags(scenario: Scenario, *extra: object) -> list[object]:
    """One iteration of SGD at the policy's own raised base, from the scenario's weights."""
    inputs = ("--pretrained-checkpoint", scenario.native, "--data-path", scenario.prefix, "--rotary-base", 50000)
    step = (
        "--train-iters",
        1,
        "--global-batch-size",
        2,
        "--optimizer",
        "sgd",
        "--lr-decay-style",
        "constant",
        "--lr-warmup-iters",
        0,
    )
    return [*inputs, *step, *extra]


@pytest.fixture(scope="module")
def validated(llama: Scenario, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return validate(ONE, (), llama, nursery, tmp_path_factory.mktemp("validated"))


def validate(
    layout: Layout, layout_flags: tuple[object, ...], scenario: Scenario, nursery: Nursery, folder: Path
) -> dict[str, float]:
    # three held-out pairs: no multiple of the data-parallel or of the pipeline size; lr 0 leaves the weights as converted
    extra = ("--split", "2,3", "--eval-interval", 1, "--metrics-file", folder / "metrics.jsonl", "--lr", 0, *layout_flags)
    nursery.start(TRAIN, flags(scenario, *extra), layout.world_size).succeed()
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    found = {
        name.removeprefix("validation/"): value for name, value in json.loads(line).items() if name.startswith("validation/")
    }
    assert found["rewards/chosen"] != 0
    return found


@pytest.mark.parametrize("layout", [layout for layout in VALIDATED if layout != ONE], ids=str)
def test_validation_does_not_depend_on_the_layout(
    layout: Layout, llama: Scenario, nursery: Nursery, validated: dict[str, float], tmp_path: Path
) -> None:
    assert_same_metrics([validated], [validate(layout, VALIDATED[layout], llama, nursery, tmp_path)])


def test_validation_on_everything_equals_score_pairs(llama: Scenario, nursery: Nursery, tmp_path: Path) -> None:
    output, inputs = tmp_path / "scores.json", ("--pretrained-checkpoint", llama.native, "--data-path", llama.prefix)
    nursery.start("tools/score_pairs.py", [*inputs, "--rotary-base", 50000, "--output", output]).succeed()
    scores = json.loads(output.read_text())
    pairs = ("--context-parallel-size", 2, "--global-batch-size", 5, "--lr", 0)  # an iteration of all pairs, not updated before
    nursery.start(TRAIN, flags(llama, "--metrics-file", tmp_path / "m.jsonl", *pairs), 2).succeed()
    (line,) = (tmp_path / "m.jsonl").read_text().splitlines()
    trained = json.loads(line)
    assert_same_metrics([scores], [{name: trained[name] for name in scores}])
    held_out = (
        "--split",
        "1,99",
        "--eval-interval",
        1,
        "--eval-iters",
        2,
        "--lr",
        0,
    )  # four of five pairs: a whole number of batches
    nursery.start(TRAIN, flags(llama, "--metrics-file", tmp_path / "v.jsonl", *held_out)).succeed()
    train_only = ("--split", "1,99", "--global-batch-size", 1, "--lr", 0)
    nursery.start(TRAIN, flags(llama, "--metrics-file", tmp_path / "t.jsonl", *train_only)).succeed()
    validation, training = (json.loads((tmp_path / name).read_text()) for name in ("v.jsonl", "t.jsonl"))
    for name in ("loss", "nll_loss", "preference_loss", "logps/chosen", "logps/rejected"):
        assert (4 * validation[f"validation/{name}"] + training[name]) / 5 == pytest.approx(scores[name], rel=1e-5), name


def order_seen(config: RunConfig) -> list[list[tuple[int, int]]]:
    """Samples of each of six iterations, over all data-parallel ranks (runs inside a worker)."""
    import torch.distributed as dist

    from megatron_longpo.models.flops import step_flops
    from megatron_longpo.models.transformer_config import apply_overrides
    from megatron_longpo.parallel import state as parallel_state
    from megatron_longpo.training.batches import shares
    from megatron_longpo.training.data import open_data
    from megatron_longpo.training.pretrained import read_record

    architecture = apply_overrides(read_record(str(config.model.pretrained_checkpoint)).architecture, config.model, 4096)
    data = open_data(config.data, config.training.seed, architecture)
    state = parallel_state.initialize(config.parallel)
    until = 6 * config.training.global_batch_size
    mine = [share.micro_batches for share in shares(config, data, step_flops(architecture), state, 0, until)]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    parallel_state.destroy()
    return [sorted(sample for rank in everyone for micro in rank[i] for sample in micro) for i in range(6)]


def test_the_pairs_of_an_iteration_do_not_depend_on_replicas_or_micro_batches(llama: Scenario, workers: Workers) -> None:
    expected = workers.run(1, order_seen, config_for(llama, ONE))[0]
    assert len({tuple(step) for step in expected}) > 1
    for options in ({}, {"micro_batch_size": 2}, {"micro_batch_tokens": 2000}):
        assert workers.run(2, order_seen, config_for(llama, ONE, **options))[0] == expected


@pytest.mark.parametrize(
    ("world_size", "layout"), [(1, ()), (2, ("--pipeline-model-parallel-size", 2)), (2, ())], ids=["one", "pp2", "dp2"]
)
def test_a_step_that_is_not_finite_stops_the_run_and_names_the_documents(
    world_size: int, layout: tuple[object, ...], llama: Scenario, nursery: Nursery, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    diverging = ("--lr", 1e30, "--save", folder, "--save-interval", 100, "--clip-grad", 0, "--train-iters", 5)
    command = nursery.start(TRAIN, flags(llama, *diverging, *layout), world_size)
    assert set(command.wait(grace=30)) == {1}
    (line,) = {text for rank in range(world_size) for text in command.output(rank).splitlines() if text.startswith("error: ")}
    assert "iteration 2: the objective is not finite for documents document-" in line
    dataset = PreferenceDataset(str(llama.prefix))
    stream = PreferenceStream([len(dataset)], None, 42)
    batch = {dataset.document_id(stream.entry(place)[1]) for place in (2, 3)}
    named = {
        dataset.document_id(index) for index in range(len(dataset)) if f"{dataset.document_id(index)} (pair {index} of" in line
    }
    assert named, "no document is named"
    assert named <= batch
    assert "Traceback" not in command.output()
    assert not list(folder.glob("iter_*"))
    assert not (folder / "latest_checkpointed_iteration.txt").exists()


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_objective_is(
    llama: Scenario, nursery: Nursery, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    huge = ("--preference-weight", 1e30, "--save", folder, "--save-interval", 1, "--train-iters", 2)
    command = nursery.start(TRAIN, flags(llama, *huge), 2)
    assert set(command.wait(grace=30)) == {1}
    (line,) = {text for rank in range(2) for text in command.output(rank).splitlines() if text.startswith("error: ")}
    assert "iteration 1: the gradient is not finite for documents document-" in line
    assert not list(folder.glob("iter_*"))


def test_a_run_does_not_start_anew_over_the_checkpoints_of_another(llama: Scenario, nursery: Nursery, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    once = flags(llama, "--save", folder, "--train-iters", 1)
    nursery.start(TRAIN, once).succeed()
    written = (folder / "metrics.jsonl").read_bytes()
    command = nursery.start(TRAIN, once)
    assert set(command.wait(grace=30)) == {1}
    assert f"error: --save {folder}: holds checkpoints already; resume from them with --load" in command.output()
    assert (folder / "metrics.jsonl").read_bytes() == written


REFUSED = {
    "three-heads": (3, ("--tensor-model-parallel-size", 3), "attention heads 4 is not a multiple of tensor-parallel size 3"),
    "groups": (4, ("--tensor-model-parallel-size", 4), "key/value heads 2 is not a multiple of tensor-parallel size 4"),
    "stages": (3, ("--pipeline-model-parallel-size", 3), "layers 4 is not a multiple of pipeline-parallel size 3"),
    "processes": (2, ("--context-parallel-size", 4), "2 processes are not a multiple of tensor x pipeline x context"),
    "sgd": (1, ("--use-distributed-optimizer",), "--use-distributed-optimizer cannot shard --optimizer sgd"),
}


def without_models() -> None:
    """Make building any model a failure of its own kind (runs inside the process under test)."""
    from megatron_longpo.models import gpt

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was built")

    gpt.LogProbGPTModel.__init__ = refuse  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_that_cannot_work_is_refused_before_a_model_is_built(name: str, llama: Scenario, nursery: Nursery) -> None:
    world_size, layout, reason = REFUSED[name]
    command = nursery.start(TRAIN, flags(llama, "--lr", 0.1, "--global-batch-size", 12, *layout), world_size, without_models)
    assert set(command.wait(grace=30)) == {1}
    (line,) = command.output().strip().splitlines()
    assert line.startswith("error: ")
    assert reason in line


def test_a_dry_run_tells_what_the_run_would_be_and_builds_nothing(llama: Scenario, nursery: Nursery, tmp_path: Path) -> None:
    layout = (
        "--tensor-model-parallel-size",
        2,
        "--sequence-parallel",
        "--context-parallel-size",
        2,
        "--use-distributed-optimizer",
    )
    step = ("--optimizer", "adam", "--lr", 1e-3, "--save", tmp_path / "run", "--train-iters", 3, "--bf16")
    described = ("--dry-run", "--num-devices", 8, "--device-gib", 1)
    command = nursery.start(TRAIN, flags(llama, *step, *layout, *described), 1, without_models).succeed()
    output = command.output()
    assert "model: llama, 4 layers" in output
    assert "5 pairs to train on, 0 held out" in output
    assert "training: 3 iterations of 2 pairs" in output
    assert "| 2+SP | 1  | 2 all_gather | 2 dist-opt | none" in output
    assert "fits a device of 1 GiB" in output
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_what_the_run_would_refuse(llama: Scenario, nursery: Nursery) -> None:
    wrong = (("--tensor-model-parallel-size", 4), "key/value heads 2 is not a multiple"), (("--seq-length", 600), "has a side of")
    for flag, reason in wrong:
        command = nursery.start(
            TRAIN, flags(llama, "--lr", 0.1, "--dry-run", "--num-devices", 4, "--global-batch-size", 4, *flag)
        )
        assert command.wait() == [1]
        (line,) = command.output().strip().splitlines()
        assert reason in line


def test_a_pair_that_is_too_long_is_refused_and_never_cut(llama: Scenario, nursery: Nursery) -> None:
    command = nursery.start(TRAIN, flags(llama, "--lr", 0.1, "--seq-length", 600), 1, without_models)
    assert command.wait() == [1]
    (line,) = command.output().strip().splitlines()
    assert "has a side of" in line
    assert "more than --seq-length 600" in line


def test_the_refusal_of_models_would_be_seen(llama: Scenario, nursery: Nursery) -> None:
    """The guard of the test above does its work on a layout that is fine."""
    command = nursery.start(TRAIN, flags(llama, "--lr", 0.1), 1, without_models)
    assert command.wait() == [1]
    assert "a model was built" in command.output()
