"""Which way context-parallel ranks exchange keys, values and heads: what fits, and what ``auto`` chooses and why."""

from __future__ import annotations

import dataclasses
import os
from typing import Protocol

from megatron_longpo.config.schema import ParallelConfig, RunConfig

GATHER_LIMIT = 2**30
"""Bytes of one layer's gathered keys and values on a rank above which ``auto`` rings. 128K tokens of a 7B model with 8 groups of
keys take half of it in bf16; one layer's are there at a time."""


class HeadCounts(Protocol):
    """What the exchange must divide or hold; `models.architecture.ModelArchitecture` has it."""

    @property
    def num_attention_heads(self) -> int: ...  # noqa: D102
    @property
    def num_query_groups(self) -> int: ...  # noqa: D102
    @property
    def kv_channels(self) -> int: ...  # noqa: D102


def trade_sizes(parallel: ParallelConfig, heads: HeadCounts) -> list[int]:
    """Sizes of a group that can trade sequence for heads: what divides the context size and a tensor rank's heads and groups."""
    tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    query_heads, groups = heads.num_attention_heads // tp, heads.num_query_groups // tp
    return [size for size in range(1, cp + 1) if cp % size == 0 and query_heads % size == 0 and groups % size == 0]


def exchange_problems(parallel: ParallelConfig, heads: HeadCounts) -> list[str]:
    """List why the exchange that is asked for cannot work, with the degrees that fit."""
    cp, kind, sizes = parallel.context_parallel_size, parallel.cp_comm_type, parallel.hierarchical_context_parallel_sizes
    if cp <= 1 or kind not in ("a2a", "a2a+p2p"):
        return []
    fitting = trade_sizes(parallel, heads)
    if sizes and (len(sizes) != 2 or sizes[0] * sizes[1] != cp):
        return []  # told by the configuration's own rules
    wanted = cp if kind == "a2a" else sizes[0] if sizes else max(fitting)
    if wanted in fitting:
        return []
    tp = parallel.tensor_model_parallel_size
    largest = max(fitting)
    instead = ""
    if largest > 1:
        instead = f"; or --cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes {largest} {cp // largest}"
    return [
        f"--cp-comm-type {kind} cannot deal {heads.num_attention_heads // tp} heads and {heads.num_query_groups // tp} key/value "
        f"heads of a tensor-parallel rank out to {wanted} ranks; degrees that fit: {', '.join(map(str, fitting))}{instead}"
    ]


def choose_exchange(
    parallel: ParallelConfig, heads: HeadCounts, seq_length: int, *, bytes_per_element: int, ranks_per_node: int | None = None
) -> tuple[ParallelConfig, str]:
    """Settle what ``auto``, or ``a2a+p2p`` without sizes, leaves open.

    Args:
        parallel: a layout that `check_layout` has passed.
        heads: the model.
        seq_length: tokens of a sequence, of which the memory of a gather is estimated.
        bytes_per_element: of keys and values.
        ranks_per_node: processes between which links are fast; default: torchrun's ``LOCAL_WORLD_SIZE``.

    Returns:
        The layout with kind and sizes settled, and the reason in words (empty without context parallelism).
    """
    cp, tp, kind = parallel.context_parallel_size, parallel.tensor_model_parallel_size, parallel.cp_comm_type
    if cp == 1:
        return dataclasses.replace(parallel, cp_comm_type="all_gather", hierarchical_context_parallel_sizes=()), ""
    if ranks_per_node is None:
        ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    node = max(1, ranks_per_node // tp)
    trade = max(size for size in trade_sizes(parallel, heads) if size == 1 or size <= node)
    if kind == "a2a+p2p":
        sizes = parallel.hierarchical_context_parallel_sizes or (trade, cp // trade)
        return _settled(parallel, kind, sizes), f"asked for, heads traded between {sizes[0]}, rings of {sizes[1]}"
    if kind != "auto":
        return _settled(parallel, kind), "asked for"
    gathered = 2 * seq_length * heads.num_query_groups // tp * heads.kv_channels * bytes_per_element
    size = f"a layer's keys and values of {seq_length} tokens are {gathered / 2**20:.0f} MiB"
    if trade == cp:
        return _settled(parallel, "a2a"), f"the heads divide over {cp} ranks of one node"
    if gathered <= GATHER_LIMIT:
        return _settled(parallel, "all_gather"), f"{size}, little enough to gather"
    if trade == 1:
        return _settled(parallel, "p2p"), f"{size}, and the heads do not divide inside a node"
    return _settled(parallel, "a2a+p2p", (trade, cp // trade)), f"{size}, and the heads divide over {trade} of {cp} ranks"


def settle_exchange(config: RunConfig, heads: HeadCounts, *, ranks_per_node: int | None = None) -> tuple[RunConfig, str]:
    """A run's configuration with its exchange settled, and the reason; see `choose_exchange`."""
    parallel, reason = choose_exchange(
        config.parallel,
        heads,
        config.data.seq_length,
        bytes_per_element=2 if config.training.bf16 else 4,
        ranks_per_node=ranks_per_node,
    )
    return dataclasses.replace(config, parallel=parallel), reason


def describe_exchange(parallel: ParallelConfig) -> str:
    """Spell a settled exchange: ``a2a+p2p 4 x 2``."""
    sizes = " x ".join(map(str, parallel.hierarchical_context_parallel_sizes))
    return f"{parallel.cp_comm_type} {sizes}".rstrip()


def _settled(parallel: ParallelConfig, kind: str, sizes: tuple[int, ...] = ()) -> ParallelConfig:
    """Write a kind down; a hierarchy with one level is that level."""
    if kind == "a2a+p2p" and 1 in sizes:
        kind, sizes = ("p2p" if sizes[0] == 1 else "a2a"), ()
    return dataclasses.replace(parallel, cp_comm_type=kind, hierarchical_context_parallel_sizes=sizes)  # type: ignore[arg-type]
