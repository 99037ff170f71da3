"""The language-model head: our log-probs of targets against whole logits, with gradients, at a large vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.contest import Scale, contest_main
from benchmarks.duel import median_of
from benchmarks.jobs import Bench, Job, keep_freed_memory_out, reuse_freed_memory
from benchmarks.measure import memory_of, timed
from benchmarks.report import Result
from megatron_longpo.utils.errors import UserError, run_command

MEMORY_TARGET, TIME_TARGET = 0.25, 1.05
TOLERANCE = 1e-4  # of gradients, relative to the largest

Head = Callable[[], list[torch.Tensor]]


def naive_head(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probs from whole logits."""
    return (hidden @ weight.t()).log_softmax(-1).gather(1, labels[:, None]).squeeze(1)


def our_head(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probs as the model's last stage computes them, of rows that count in the NLL: with weights known up to a factor."""
    from megatron_longpo.config.schema import TrainingConfig
    from megatron_longpo.models.linear_cross_entropy import VocabShard, linear_log_probs

    shard, known = VocabShard(0, weight.size(0)), torch.ones(labels.shape, dtype=torch.float64)
    return linear_log_probs(hidden, weight, labels, shard, TrainingConfig().logit_chunk_size, known)


HEADS = {"ours": our_head, "naive": naive_head}


def heads(names: list[str], rows: int, vocab: int, hidden_size: int) -> dict[str, Head]:
    """Forward and backward of the mean negative log-likelihood; each call returns fresh gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, hidden_size, generator=generator).requires_grad_()
    weight = (torch.randn(vocab, hidden_size, generator=generator) * 0.02).requires_grad_()
    labels = torch.randint(0, vocab, (rows,), generator=generator)

    def passes(head: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        return list(torch.autograd.grad(-head(hidden, weight, labels).mean(), (hidden, weight)))

    return {name: lambda name=name: passes(HEADS[name]) for name in names}  # type: ignore[misc]


def times(rows: int, vocab: int, hidden_size: int, rounds: int) -> dict[str, Any]:
    """Alternated samples, after the gradients are seen to agree.

    Raises:
        UserError: if they do not.
    """
    both = heads(["ours", "naive"], rows, vocab, hidden_size)
    for ours, theirs in zip(both["ours"](), both["naive"](), strict=True):
        if not torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE * theirs.abs().max().item()):
            raise UserError(f"the heads' gradients differ by {(ours - theirs).abs().max()} of {theirs.abs().max()}")
    del ours, theirs
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in both}
    for _ in range(rounds):
        for name, head in both.items():
            samples[name].append(timed(head)[1])
    return samples


def peak(name: str, rows: int, vocab: int, hidden_size: int) -> dict[str, int]:
    """Peak memory of forward and backward above inputs and weights."""
    (head,) = heads([name], rows, vocab, hidden_size).values()
    heads([name], 16, 64, hidden_size)[name]()  # what the first backward of a process sets up
    return memory_of(head)[1]


def contest(bench: Bench, scale: Scale) -> list[Result]:
    """Peak memory and CPU time."""
    rows, vocab, rounds = scale.head
    size = {"rows": rows, "vocab": vocab, "hidden_size": scale.model.hidden}
    shape = f"s={rows}, V={vocab}"

    def measure(what: str, function: str, environment: dict[str, str], **more: Any) -> Any:
        job = Job(
            name=f"head-{what}-{rows}-{vocab}", function=f"benchmarks.head:{function}", arguments={**size, **more},
            threads=scale.threads, environment=environment,
        )  # fmt: skip
        return bench.run(job)[0]

    peaks = [measure(f"memory-{name}", "peak", keep_freed_memory_out(), name=name)["peak"] for name in HEADS]
    samples = measure("time", "times", reuse_freed_memory(), rounds=rounds)
    cpu, wall = ([median_of(samples[name], quantity) for name in HEADS] for quantity in ("cpu", "wall"))
    common: dict[str, Any] = {"contest": "head", "against": "whole logits", "shape": shape}
    return [
        Result(
            **common, quantity="peak memory", unit="MB", ours=peaks[0] / 1e6, other=peaks[1] / 1e6, ratio=peaks[0] / peaks[1],
            target=MEMORY_TARGET,
        ),
        Result(
            **common, quantity="CPU time", unit="s", ours=cpu[0], other=cpu[1], ratio=cpu[0] / cpu[1], target=TIME_TARGET,
            details={"wall": wall},
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    run_command(lambda: contest_main("head", contest, __doc__))
