"""What context-parallel ranks exchange: every choice works and says why; what cannot is refused with the degrees that do."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.config.context_layout import GATHER_LIMIT, choose_exchange, describe_exchange, exchange_problems
from megatron_longpo.config.layout import check_layout
from megatron_longpo.config.schema import ParallelConfig
from megatron_longpo.utils.errors import UserError

MISTRAL = SimpleNamespace(num_attention_heads=32, num_query_groups=8, num_layers=32, ffn_hidden_size=14336, kv_channels=128)
QWEN = SimpleNamespace(num_attention_heads=28, num_query_groups=4, num_layers=28, ffn_hidden_size=18944, kv_channels=128)


def layout(cp: int, kind: Any = "auto", sizes: tuple[int, ...] = (), tp: int = 1) -> ParallelConfig:
    return ParallelConfig(
        context_parallel_size=cp,
        tensor_model_parallel_size=tp,
        cp_comm_type=kind,
        hierarchical_context_parallel_sizes=sizes,
    )


@pytest.mark.parametrize(
    ("parallel", "model", "length", "node", "chosen", "reason"),
    [
        (layout(1), QWEN, 131072, 8, "all_gather", ""),
        (layout(8), MISTRAL, 131072, 8, "a2a", "the heads divide over 8 ranks of one node"),
        (layout(8), QWEN, 131072, 8, "all_gather", "256 MiB, little enough to gather"),
        (layout(8), QWEN, 1 << 20, 8, "a2a+p2p 4 x 2", "2048 MiB, and the heads divide over 4 of 8 ranks"),
        (layout(16), MISTRAL, 524288, 8, "a2a+p2p 8 x 2", "the heads divide over 8 of 16 ranks"),
        (layout(8, tp=4), QWEN, 1 << 23, 8, "p2p", "the heads do not divide inside a node"),
        (layout(8, "p2p"), MISTRAL, 1024, 8, "p2p", "asked for"),
        (layout(8, "a2a+p2p", (2, 4)), MISTRAL, 1024, 8, "a2a+p2p 2 x 4", "heads traded between 2, rings of 4"),
        (layout(8, "a2a+p2p"), QWEN, 1024, 8, "a2a+p2p 4 x 2", "heads traded between 4"),
        (layout(8, "a2a+p2p"), MISTRAL, 1024, 8, "a2a", "heads traded between 8, rings of 1"),
    ],
)
def test_the_choice_and_its_reason(parallel, model, length, node, chosen, reason):
    settled, said = choose_exchange(parallel, model, length, bytes_per_element=2, ranks_per_node=node)
    assert describe_exchange(settled) == chosen
    assert reason in said


@given(
    st.sampled_from([1, 2, 3, 4, 6, 8, 16, 32]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(10, 24),
    st.sampled_from([1, 4, 8]),
    st.sampled_from(["auto", "a2a+p2p"]),
)
def test_what_is_chosen_works(cp: int, tp: int, groups: int, per_group: int, exponent: int, node: int, kind: str) -> None:
    model = SimpleNamespace(
        num_attention_heads=groups * per_group * tp,
        num_query_groups=groups * tp,
        num_layers=2,
        ffn_hidden_size=64,
        kv_channels=64,
    )
    asked = layout(cp, kind, tp=tp)
    settled, reason = choose_exchange(asked, model, 2**exponent, bytes_per_element=2, ranks_per_node=node)
    assert not exchange_problems(settled, model)
    check_layout(settled, model, cp * tp)
    assert bool(reason) == (cp > 1)
    assert settled.cp_comm_type != "auto"
    sizes = settled.hierarchical_context_parallel_sizes
    assert bool(sizes) == (settled.cp_comm_type == "a2a+p2p")
    assert not sizes or (math.prod(sizes) == cp and min(sizes) > 1)
    if kind == "auto" and settled.cp_comm_type == "all_gather" and cp > 1:
        assert 2 * 2**exponent * groups * 64 * 2 <= GATHER_LIMIT
    assert choose_exchange(settled, model, 2**exponent, bytes_per_element=2, ranks_per_node=node)[0] == settled


@pytest.mark.parametrize(
    ("parallel", "told"),
    [
        (layout(8, "a2a"), "cannot deal 28 heads and 4 key/value heads of a tensor-parallel rank out to 8 ranks; "
                           "degrees that fit: 1, 2, 4; or --cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes 4 2"),
        (layout(8, "a2a+p2p", (8, 1)), "degrees that fit: 1, 2, 4"),
        (layout(4, "a2a", tp=4), "cannot deal 7 heads and 1 key/value heads"),
    ],
)  # fmt: skip
def test_heads_that_do_not_divide_are_refused_with_the_degrees_that_fit(parallel, told):
    with pytest.raises(UserError) as refusal:
        check_layout(parallel, QWEN, parallel.context_parallel_size * parallel.tensor_model_parallel_size)
    assert told in str(refusal.value)
    assert "nearest layouts that work" in str(refusal.value)
