"""Laws of layouts: one that cannot work is refused with its reasons, and those offered instead do work."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.config.layout import check_layout, data_parallel_size, nearest_layouts
from megatron_longpo.config.schema import ParallelConfig
from megatron_longpo.utils.errors import UserError

QWEN = SimpleNamespace(num_attention_heads=28, num_query_groups=4, num_layers=28, ffn_hidden_size=18944, kv_channels=128)
SMOLLM = SimpleNamespace(num_attention_heads=9, num_query_groups=3, num_layers=30, ffn_hidden_size=1536, kv_channels=64)


def layout(tp: int = 1, pp: int = 1, cp: int = 1, chunk: int | None = None) -> ParallelConfig:
    return ParallelConfig(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        context_parallel_size=cp,
        num_layers_per_virtual_pipeline_stage=chunk,
        sequence_parallel=tp > 1,
    )


@pytest.mark.parametrize(
    ("parallel", "architecture", "world_size"),
    [
        (layout(), SMOLLM, 1),
        (layout(tp=3, pp=2, cp=5), SMOLLM, 60),
        (layout(pp=2, chunk=5), SMOLLM, 2),
        (layout(tp=4, pp=7, chunk=2), QWEN, 28),
        (layout(cp=8), QWEN, 8),
    ],
)
def test_a_layout_that_divides_the_model_is_taken(parallel, architecture, world_size):
    check_layout(parallel, architecture, world_size)


@pytest.mark.parametrize(
    ("parallel", "architecture", "world_size", "reasons"),
    [
        (layout(tp=2), SMOLLM, 2, ["attention heads 9 is not a multiple of tensor-parallel size 2", "key/value heads 3"]),
        (layout(tp=7), QWEN, 7, ["key/value heads 4 is not a multiple of tensor-parallel size 7", "feed-forward width 18944"]),
        (layout(pp=4), SMOLLM, 4, ["layers 30 is not a multiple of pipeline-parallel size 4"]),
        (layout(pp=2, chunk=4), SMOLLM, 2, ["15 layers of a pipeline stage", "4 layers a virtual stage"]),
        (layout(pp=2, chunk=15), SMOLLM, 2, ["nothing is interleaved"]),
        (layout(cp=3), SMOLLM, 4, ["4 processes are not a multiple of tensor x pipeline x context = 1 x 1 x 3 = 3"]),
        (layout(cp=0), SMOLLM, 4, ["at least 1"]),
        (layout(tp=8, pp=3), QWEN, 8, ["attention heads 28", "layers 28", "8 processes"]),
    ],
)
def test_a_layout_that_cannot_work_is_refused_with_every_reason(parallel, architecture, world_size, reasons):
    with pytest.raises(UserError) as refusal:
        check_layout(parallel, architecture, world_size)
    for reason in [*reasons, "nearest layouts that work: TP"]:
        assert reason in str(refusal.value)


sizes = st.integers(1, 8)


@settings(max_examples=200)
@given(
    parallel=st.builds(layout, tp=sizes, pp=sizes, cp=sizes, chunk=st.none() | sizes),
    heads=sizes,
    groups=sizes,
    layers=st.integers(1, 32),
    ffn=st.integers(1, 64),
    world_size=st.integers(1, 64),
)
def test_every_layout_offered_instead_is_taken(parallel, heads, groups, layers, ffn, world_size):
    architecture = SimpleNamespace(
        num_attention_heads=heads * groups, num_query_groups=groups, num_layers=layers, ffn_hidden_size=ffn
    )
    offered = nearest_layouts(parallel, architecture, world_size)
    assert offered
    for candidate in offered:
        check_layout(candidate, architecture, world_size)


def test_the_nearest_layout_keeps_the_sizes_that_can_be_kept():
    nearest = nearest_layouts(layout(tp=8, cp=2), QWEN, 16)[0]
    assert (nearest.tensor_model_parallel_size, nearest.context_parallel_size) == (4, 2)


def test_the_data_parallel_size_is_what_remains():
    assert data_parallel_size(layout(tp=2, pp=2, cp=2), 24) == 3
