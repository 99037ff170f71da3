"""Plans as a table to read and as values to compute with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from megatron_longpo.config.context_layout import describe_exchange
from megatron_longpo.estimation.layouts import Plan, paste_flags
from megatron_longpo.estimation.memory import CAUSES

GIB = 1 << 30
SHORT = {"weights": "weights", "gradients": "grads", "optimizer": "optim", "reference": "ref", "activations": "activ",
         "recomputed": "recomp", "attention": "K/V", "head": "head", "workspace": "work"}  # fmt: skip


def gib(size: int) -> str:
    """Bytes in GiB, to three figures or a tenth."""
    return f"{size / GIB:.1f}" if size >= 10 * GIB else f"{size / GIB:.2f}"


def describe_recompute(plan: Plan) -> str:
    """Spell the recomputation in short."""
    training, optimizer = plan.config.training, plan.config.optimizer
    words = {None: "none", "selective": "selective", "full": "full"}[training.recompute_granularity]
    if training.recompute_granularity == "full":
        if training.recompute_method == "block":
            words = f"block {training.recompute_num_layers}"
        elif training.recompute_num_layers > 1:
            words = f"full by {training.recompute_num_layers}"
        words += "" if training.recompute_attention else ", attention kept"
    return words + (", optimizer on host" if optimizer.optimizer_cpu_offload else "")


def row(plan: Plan) -> dict[str, str]:
    """One plan as the cells of a table, GiB for memory."""
    ranks, parallel = plan.ranks, plan.config.parallel
    context = f"{ranks.cp} {describe_exchange(parallel)}" if ranks.cp > 1 else "1"
    causes = {SHORT[cause]: gib(getattr(plan.memory, cause)) for cause in CAUSES}
    return {
        "TP": f"{ranks.tp}{'+SP' if ranks.sp > 1 else ''}",
        "PP": str(ranks.pp),
        "CP": context,
        "DP": f"{ranks.dp}{' dist-opt' if parallel.use_distributed_optimizer else ''}",
        "recompute": describe_recompute(plan),
        **causes,
        "peak GiB": gib(plan.memory.peak),
        "PFLOP": f"{plan.device_flops / 1e15:.2f}",
        "again": f"{plan.recomputed_share:.0%}",
        "bubble": f"{plan.bubble:.0%}",
        "link GB": f"{plan.link_bytes / 1e9:.0f}",
    }


def table(plans: Sequence[Plan]) -> str:
    """Plans as a Markdown table with columns of equal width, so that it reads in a terminal too."""
    rows = [row(plan) for plan in plans]
    # a cause that is nowhere needs no column
    names = [name for name in rows[0] if name not in ("ref", "recomp") or any(found[name] != "0.00" for found in rows)]
    widths = [max(len(name), *(len(found[name]) for found in rows)) for name in names]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    body = [line([found[name] for name in names]) for found in rows]
    return "\n".join([line(names), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *body])


def values(plan: Plan) -> dict[str, Any]:
    """A plan for ``--json``: bytes, operations, flags."""
    return {
        "layout": dataclasses.asdict(plan.ranks),
        "exchange": describe_exchange(plan.config.parallel) if plan.ranks.cp > 1 else None,
        "distributed_optimizer": plan.config.parallel.use_distributed_optimizer,
        "recompute": describe_recompute(plan),
        "bytes": {**dataclasses.asdict(plan.memory), "peak": plan.memory.peak},
        "device_flops": plan.device_flops,
        "recomputed_share": plan.recomputed_share,
        "bubble": plan.bubble,
        "link_bytes": plan.link_bytes,
        "relative_seconds": plan.seconds,
        "flags": paste_flags(plan.config),
    }
