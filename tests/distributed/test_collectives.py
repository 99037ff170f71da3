"""What crosses ranks, and what does not, in forward and in backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.workers import Workers


def _sum_over_context() -> tuple[float, float]:
    from megatron_longpo.parallel.collectives import sum_over_context

    rank = dist.get_rank()
    local = torch.tensor([float(rank + 1)], requires_grad=True)
    total = sum_over_context(local, dist.group.WORLD)
    (total**2).sum().backward()
    assert local.grad is not None
    return total.item(), local.grad.item()


def test_the_gradient_of_a_sum_over_context_is_the_sum_s_own(workers: Workers) -> None:
    # d(total^2)/d(local) = 2 * total on every rank: not cp times that, and not 2 * local
    assert workers.run(2, _sum_over_context) == [(3.0, 6.0), (3.0, 6.0)]


def _gather_then_scatter() -> bool:
    from megatron_longpo.parallel.context_exchange import ContextExchange
    from megatron_longpo.parallel.context_parallel import zigzag_slice

    size, rank = dist.get_world_size(), dist.get_rank()
    length = 8 * size
    whole = torch.arange(2.0 * length).view(length, 1, 2, 1)
    shard = zigzag_slice(whole, size, rank)
    good = []
    for ring in (False, True):
        exchange = ContextExchange(keys_group=dist.group.WORLD, ring=ring)
        runs, seen = exchange.key_runs(length), torch.zeros(length)

        def placed(step: int, buffer: torch.Tensor, factor: float = 1.0, runs: Any = runs) -> bool:
            return all(
                torch.equal(buffer[run.local_start :][: run.end - run.start], whole[run.start : run.end] * factor)
                for run in runs[step]
            )

        def look(step: int, keys: torch.Tensor, values: torch.Tensor, runs: Any = runs, seen: Any = seen) -> None:
            good.append(placed(step, keys) and placed(step, values, -1.0))
            for run in runs[step]:
                seen[run.start : run.end] += 1

        def give(step: int, keys: torch.Tensor, values: torch.Tensor, d_keys: torch.Tensor, d_values: torch.Tensor) -> None:
            d_keys += keys * (rank + 1)
            d_values += values * (rank + 1)

        exchange.forward(shard, -shard, look)
        good.append(bool((seen == 1).all()))
        d_key, d_value = exchange.backward(shard, -shard, torch.float64, give)
        expected = shard.double() * sum(range(1, size + 1))
        good.append(torch.equal(d_key, expected) and torch.equal(d_value, -expected))
    return all(good)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_rank_sees_every_key_once_and_gets_the_sum_of_its_own_gradients(size: int, workers: Workers) -> None:
    assert all(workers.run(size, _gather_then_scatter))


def _trade() -> bool:
    from megatron_longpo.parallel.context_exchange import ContextExchange
    from megatron_longpo.parallel.context_parallel import zigzag_slice

    size, rank = dist.get_world_size(), dist.get_rank()
    exchange = ContextExchange(heads_group=dist.group.WORLD)
    whole = torch.randn(8 * size, 1, 2 * size, 3, generator=torch.Generator().manual_seed(0))
    shard = zigzag_slice(whole, size, rank).requires_grad_()
    traded = exchange.to_heads(shard)
    mine = torch.equal(traded, whole[:, :, 2 * rank : 2 * rank + 2])
    back = exchange.to_sequence(traded)
    (back * shard.detach()).sum().backward()
    return mine and torch.equal(back, shard) and torch.equal(shard.grad, shard.detach())  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [2, 4])
def test_trading_gives_all_rows_of_a_rank_s_heads_and_takes_them_back(size: int, workers: Workers) -> None:
    assert all(workers.run(size, _trade))


def _broadcast() -> list[list[Any]]:
    from megatron_longpo.parallel.collectives import broadcast_from_first

    given = None
    if dist.get_rank() == 0:
        real = torch.tensor([0.5, torch.nan], dtype=torch.float64)
        given = [torch.arange(6).view(2, 3), real, torch.empty(0, 4, dtype=torch.int64)]
    received = broadcast_from_first(given, dist.group.WORLD, torch.device("cpu"))
    return [[list(t.shape), str(t.dtype), t.nan_to_num(-1.0).flatten().tolist()] for t in received]


def test_a_broadcast_keeps_shapes_types_and_values(workers: Workers) -> None:
    expected = [[[2, 3], "torch.int64", [0, 1, 2, 3, 4, 5]], [[2], "torch.float64", [0.5, -1.0]], [[0, 4], "torch.int64", []]]
    assert workers.run(2, _broadcast) == [expected, expected]


def _sharded_head(knows_weights: bool) -> tuple[float, float, float]:
    from megatron_longpo.models.linear_cross_entropy import VocabShard, linear_log_probs

    size, rank, vocab = dist.get_world_size(), dist.get_rank(), 37
    padded = -(-vocab // size) * size
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(padded, 8, generator=generator, dtype=torch.float64)
    labels = torch.arange(50) % vocab  # every word, so each shard's first word (local column 0) too
    labels[::7] = -100
    upstream = torch.randn(50, generator=generator, dtype=torch.float64)
    known = torch.where(torch.arange(50) % 3 > 0, -2 * upstream, 0.0) if knows_weights else None
    whole = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    expected = linear_log_probs(*whole, labels, VocabShard(0, vocab), 16)
    expected.backward(upstream)
    rows = padded // size
    ours = [hidden.clone().requires_grad_(), weight[rank * rows : (rank + 1) * rows].clone().requires_grad_()]
    found = linear_log_probs(*ours, labels, VocabShard.of(rows, vocab, dist.group.WORLD), 16, known)
    found.backward(upstream)
    d_hidden = ours[0].grad.clone()
    dist.all_reduce(d_hidden)
    part = whole[1].grad[rank * rows : (rank + 1) * rows]
    errors = (found - expected, d_hidden - whole[0].grad, ours[1].grad - part)
    return tuple(float(error.detach().abs().max()) for error in errors)  # type: ignore[return-value]


@pytest.mark.parametrize("knows_weights", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_the_head_over_vocabulary_shards_is_the_whole_head(size: int, knows_weights: bool, workers: Workers) -> None:
    for errors in workers.run(size, _sharded_head, knows_weights):
        assert max(errors) < 1e-10
