"""Useful floating-point operations of a step, by formula; recomputation never counts.

A row is a token that goes through the layers; a pair is a query with a key that it sees. The backward of a matrix product
costs twice its forward, that of attention 2.5 times (five products for two).
"""

from __future__ import annotations

import dataclasses

from benchmarks.problem import ModelShape, Problem


@dataclasses.dataclass(frozen=True)
class Work:
    """What goes through the model.

    Attributes:
        rows: through the layers.
        head_rows: through the output layer.
        pairs: queries with keys, in each layer.
    """

    rows: int
    head_rows: int
    pairs: int

    def __add__(self, other: Work) -> Work:
        """Both."""
        return Work(self.rows + other.rows, self.head_rows + other.head_rows, self.pairs + other.pairs)


def triangle(rows: int) -> int:
    """Pairs of a causal square."""
    return rows * (rows + 1) // 2


def layer_parameters(shape: ModelShape) -> int:
    """Weights of the matrix products of all layers."""
    head_dim = shape.hidden // shape.heads
    attention = 2 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.kv_heads * head_dim
    return shape.layers * (attention + 3 * shape.hidden * shape.ffn)


def linear_forward(shape: ModelShape, work: Work) -> int:
    """Operations of the matrix products with weights."""
    return 2 * layer_parameters(shape) * work.rows + 2 * shape.hidden * shape.vocab * work.head_rows


def attention_forward(shape: ModelShape, work: Work) -> int:
    """Operations of the two products of attention."""
    return 4 * shape.layers * shape.hidden * work.pairs


def forward_flops(shape: ModelShape, work: Work) -> int:
    """A pass without gradients."""
    return linear_forward(shape, work) + attention_forward(shape, work)


def step_flops(shape: ModelShape, work: Work) -> float:
    """Forward and backward."""
    return 3 * linear_forward(shape, work) + 3.5 * attention_forward(shape, work)


def sequence(rows: int) -> Work:
    """One causal sequence with every row in the loss."""
    return Work(rows, rows, triangle(rows))


def packed(problem: Problem) -> Work:
    """Our sequence: the chosen side, a copy of the last shared token, and the rejected answer that sees the shared prompt."""
    rows = problem.side + problem.answer + 1
    return Work(rows, rows, triangle(problem.side) + problem.answer * problem.prompt + triangle(problem.answer))


def two_pass_flops(problem: Problem) -> float:
    """The public method's step: both sides whole, and the reference on both short contexts."""
    side, short = sequence(problem.side), sequence(problem.short + problem.answer)
    return step_flops(problem.model, side + side) + forward_flops(problem.model, short + short)


def our_flops(problem: Problem) -> float:
    """Our step, with the reference's log-probs at hand."""
    return step_flops(problem.model, packed(problem))


def our_dpo_flops(problem: Problem) -> float:
    """Our step without the NLL: only answers go through the head."""
    return step_flops(problem.model, dataclasses.replace(packed(problem), head_rows=2 * problem.answer))


def dpo_flops(problem: Problem) -> float:
    """DPO by two whole sequences with the reference's log-probs at hand: only answers need the head."""
    rows = problem.side
    return step_flops(problem.model, Work(2 * rows, 2 * problem.answer, 2 * triangle(rows)))
