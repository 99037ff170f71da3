"""Operations against the published table, plans that hold what they promise, and flags that make the run that was planned."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable

import pytest

from megatron_longpo.config.cli import parse_args
from megatron_longpo.config.layout import check_layout
from megatron_longpo.config.schema import (
    DataConfig,
    LoraConfig,
    OptimizerConfig,
    ParallelConfig,
    ReferenceConfig,
    RunConfig,
    TrainingConfig,
)
from megatron_longpo.estimation.flops import pair_flops, recompute_flops, two_pass_flops
from megatron_longpo.estimation.layouts import Machine, evaluate, paste_flags, plan_layouts
from megatron_longpo.estimation.memory import CAUSES, estimate_memory
from megatron_longpo.estimation.models import MODELS
from megatron_longpo.estimation.report import gib, table, values
from megatron_longpo.estimation.shape import PairShape
from megatron_longpo.utils.errors import UserError
from tools.estimate_memory import build_parser, read_model, read_run

MISTRAL, QWEN = MODELS["mistral-7b"], MODELS["qwen2.5-7b"]
BF16 = RunConfig(training=TrainingConfig(bf16=True))
NODE = Machine(num_devices=8, device_bytes=80 << 30)
LONG = PairShape(length=131072, tail=512)
GIVEN = ["--pretrained-checkpoint", "model", "--data-path", "pairs", "--num-epochs", "1"]


@pytest.mark.parametrize(
    ("prompt", "turns", "packed", "two_passes"),
    # PFLOP of Mistral-7B with answers of 512 tokens and short contexts of 4160, computed before this code was written
    [(32768, 1, 2.50, 4.87 + 0.144), (131072, 1, 21.68, 43.00 + 0.144), (524288, 4, 278.8, 553.3 + 0.577)],
)
def test_operations_are_those_of_the_published_formula(prompt: int, turns: int, packed: float, two_passes: float) -> None:
    tail = 512 * turns
    shape = PairShape(length=prompt + tail, tail=tail)
    # that table's head computes its logits twice
    head_again = 2 * MISTRAL.hidden_size * MISTRAL.vocab_size * shape.rows
    assert (pair_flops(MISTRAL, shape) + head_again) / 1e15 == pytest.approx(packed, rel=0.003)
    assert two_pass_flops(MISTRAL, shape, turns, 4160 + 512) / 1e15 == pytest.approx(two_passes, rel=0.003)


@pytest.mark.parametrize("sharing", [True, False])
def test_rows_and_score_pairs_are_those_of_the_packed_sequence(sharing: bool) -> None:
    from megatron_longpo.models.attention_plan import build_plan
    from megatron_longpo.parallel.context_parallel import Run
    from megatron_longpo.parallel.packed_sequence import Chain

    shape = PairShape(length=50, tail=9, prefix_sharing=sharing)
    chains = (Chain(0, 50), Chain(50, 10, 0, 40) if sharing else Chain(50, 50))
    whole = Run(0, shape.rows, 0)
    assert sum(chain.length for chain in chains) == shape.rows
    assert build_plan(chains, (whole,), (whole,)).score_pairs() == shape.score_pairs


@pytest.mark.parametrize(
    "base",
    [
        BF16,
        dataclasses.replace(BF16, optimizer=OptimizerConfig(optimizer="sgd")),
        dataclasses.replace(BF16, reference=ReferenceConfig(reference="live"), data=DataConfig(prefix_sharing=False)),
    ],
    ids=["adam", "sgd", "live reference, no sharing"],
)
def test_the_flags_of_a_plan_make_the_run_that_was_planned(base: RunConfig) -> None:
    plans = plan_layouts(MISTRAL, base, LONG, NODE)
    assert len(plans) > 5
    assert [plan.seconds for plan in plans] == sorted(plan.seconds for plan in plans)
    for plan in plans:
        config = parse_args([*GIVEN, *shlex.split(paste_flags(plan.config))], world_size=8)
        assert (config.parallel, config.optimizer) == (plan.config.parallel, plan.config.optimizer)
        assert (config.reference, config.data.prefix_sharing) == (base.reference, base.data.prefix_sharing)
        assert dataclasses.replace(config.training, num_epochs=None) == plan.config.training
        check_layout(config.parallel, MISTRAL, 8)
        assert plan.memory.peak == sum(values(plan)["bytes"][cause] for cause in CAUSES) <= NODE.usable_bytes
        assert estimate_memory(MISTRAL, config, LONG, 8, fused=True) == plan.memory


def test_a_larger_device_fits_more_and_a_small_one_nothing() -> None:
    counts = [
        len(plan_layouts(QWEN, BF16, LONG, dataclasses.replace(NODE, device_bytes=size << 30))) for size in (16, 48, 80, 192)
    ]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] > counts[1]


def peak(change: Callable[[RunConfig], RunConfig] = lambda config: config, shape: PairShape = LONG, devices: int = 8) -> int:
    layout = ParallelConfig(tensor_model_parallel_size=4, sequence_parallel=True, context_parallel_size=2, cp_comm_type="a2a")
    config = change(dataclasses.replace(BF16, parallel=layout))
    return estimate_memory(MISTRAL, config, shape, devices, fused=True).peak


def with_training(**changes: object) -> Callable[[RunConfig], RunConfig]:
    return lambda config: dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))  # type: ignore[arg-type]


def with_parallel(**changes: object) -> Callable[[RunConfig], RunConfig]:
    return lambda config: dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **changes))  # type: ignore[arg-type]


def test_each_saving_saves() -> None:
    plain = peak()
    assert peak(with_parallel(use_distributed_optimizer=True)) < plain
    assert peak(with_parallel(sequence_parallel=False)) > plain
    assert peak(shape=dataclasses.replace(LONG, prefix_sharing=False)) > 1.5 * plain
    live = ReferenceConfig(reference="live")
    assert peak(lambda config: dataclasses.replace(config, reference=live)) - plain == pytest.approx(2 * 7.24e9 / 4, rel=0.01)
    kinds = [
        {},
        {"recompute_granularity": "selective"},
        {"recompute_granularity": "full", "recompute_attention": False},
        {"recompute_granularity": "full"},
    ]
    peaks = [peak(with_training(**kind)) for kind in kinds]
    assert peaks == sorted(peaks, reverse=True)
    again = [recompute_flops(MISTRAL, LONG, TrainingConfig(**kind), 1) for kind in kinds]  # type: ignore[arg-type]
    assert again == sorted(again)


def test_adapters_leave_gradients_and_optimizer_of_their_own_size_only() -> None:
    plain, layout = BF16, ParallelConfig(context_parallel_size=8, cp_comm_type="a2a", use_distributed_optimizer=True)
    full, lora = (
        estimate_memory(
            MISTRAL, dataclasses.replace(plain, parallel=layout, lora=LoraConfig(lora_rank=rank)), LONG, 8, fused=True
        )
        for rank in (None, 16)
    )
    adapters = 41_943_040  # what PEFT reports for Mistral-7B at rank 16 on all seven linears
    assert lora.gradients == 4 * adapters
    assert lora.optimizer == 12 * adapters // 8
    assert lora.weights - full.weights == 2 * adapters
    assert lora.peak < full.peak


def test_a_pipeline_s_first_stage_holds_several_micro_batches() -> None:
    config = dataclasses.replace(BF16, parallel=ParallelConfig(pipeline_model_parallel_size=4))
    one = with_training(global_batch_size=1)(config)
    first, alone = (estimate_memory(QWEN, run, PairShape(length=65536, tail=512), 4, fused=True) for run in (config, one))
    assert first.stage == 0
    assert first.activations > 3 * alone.activations


def test_the_table_has_a_row_a_plan_and_columns_of_one_width() -> None:
    plans = [
        evaluate(MISTRAL, dataclasses.replace(BF16, parallel=ParallelConfig()), LONG, dataclasses.replace(NODE, num_devices=1))
    ]
    lines = table(plans).splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    assert gib(plans[0].memory.peak) in lines[2]


def test_a_hugging_face_folder_is_read_as_its_preset(tmp_path) -> None:
    from megatron_longpo.models.hf_config import architecture_to_hf

    (tmp_path / "config.json").write_text(json.dumps(architecture_to_hf(QWEN, "bfloat16")), encoding="utf-8")
    assert read_model(str(tmp_path)) == QWEN


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--model absent --length 4096", "no preset and no folder with a config.json"),
        ("--model mistral-7b --length 512", "do not fit --length 512"),
        ("--model mistral-7b --length 4096 --num-devices 0", "--num-devices is 0"),
        ("--model mistral-7b --length 4096 --device-gib 4", "--reserve-gib 8.0 must be less than --device-gib 4.0"),
    ],
)
def test_what_cannot_be_estimated_is_refused_in_words(flags: str, reason: str) -> None:
    arguments = build_parser().parse_args(flags.split())
    with pytest.raises(UserError, match=reason):
        assert read_model(arguments.model) != read_run(arguments)
