"""Prompts with given answers as packed sequences: what a model reads to be asked whether it would give one of them.

A prompt and its first answer are one chain; each further answer is a chain of its own that begins with a copy of the prompt's
last token, attached to the prompt before it. A prompt that begins as an earlier one does, questions about one text, is attached
to that one where they part. Every row sees what it would see in a sequence of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from megatron_longpo.parallel.context_parallel import zigzag_slice
from megatron_longpo.parallel.packed_sequence import Chain, PackedInput, chain_positions
from megatron_longpo.utils.constants import IGNORE_INDEX

WORTH_SHARING = 64
"""Tokens of a common start from which on it is read once: each part of a chain is a kernel call of its own."""


@dataclasses.dataclass(frozen=True)
class AnswerItem:
    """A prompt and its right answers, as tokens.

    Attributes:
        prompt: int32, at least one token.
        answers: int32, at least one answer of at least one token.
    """

    prompt: np.ndarray
    answers: tuple[np.ndarray, ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt with its longest answer."""
        return len(self.prompt) + max(map(len, self.answers))


@dataclasses.dataclass(frozen=True)
class RankAnswers:
    """One context-parallel rank's rows of a micro-batch.

    Attributes:
        packed: what the model reads.
        owner: ``[s/cp]`` int64, the answer that a row's label belongs to, among those of the micro-batch; -1 for none.
        num_answers: answers in the micro-batch, those of each item in order.
    """

    packed: PackedInput
    owner: Tensor
    num_answers: int


@dataclasses.dataclass(frozen=True)
class AnswerBatch:
    """Several items in one packed sequence of ``s`` rows.

    Attributes:
        tokens: ``[s]`` int64.
        labels: ``[s]`` int64, the next token where it belongs to an answer, else `IGNORE_INDEX`.
        position_ids: ``[s]`` int64.
        owner: ``[s]`` int64, see `RankAnswers`.
        chains: the packed sequence's chains.
        num_answers: answers in it.
    """

    tokens: Tensor
    labels: Tensor
    position_ids: Tensor
    owner: Tensor
    chains: tuple[Chain, ...]
    num_answers: int

    def slice_context(self, cp_size: int, cp_rank: int, device: torch.device) -> RankAnswers:
        """The rows that one context-parallel rank holds, on its device."""
        whole = (self.tokens, self.labels, self.position_ids, self.owner)
        tokens, labels, positions, owner = (zigzag_slice(each.to(device), cp_size, cp_rank) for each in whole)
        return RankAnswers(PackedInput(tokens, labels, positions, self.chains, len(self.tokens)), owner, self.num_answers)


def pack_answers(items: Iterable[AnswerItem], max_rows: int, multiple: int) -> Iterator[AnswerBatch]:
    """Pack items as they come, as many in a sequence as have ``max_rows`` rows together; one with more stands alone.

    Args:
        items: prompts with answers.
        max_rows: rows of a sequence, before padding.
        multiple: each sequence is padded to a multiple of it.
    """
    rows = _Rows()
    for item in items:
        root, common = rows.find_start(item.prompt)
        if rows.length and rows.length + _rows_of(item, common) > max_rows:
            yield rows.finish(multiple)
            rows, root, common = _Rows(), None, 0
        rows.add(item, root, common)
    if rows.length:
        yield rows.finish(multiple)


def _rows_of(item: AnswerItem, common: int) -> int:
    first, *others = item.answers
    return len(item.prompt) - common + len(first) - 1 + sum(map(len, others))


class _Rows:
    """A sequence being packed."""

    def __init__(self) -> None:
        self.length = 0
        self._chains: list[Chain] = []
        self._roots: list[tuple[int, np.ndarray]] = []  # chains without a parent, with their prompts
        self._columns: dict[str, list[np.ndarray]] = {"tokens": [], "labels": [], "owner": []}
        self._num_answers = 0

    def find_start(self, prompt: np.ndarray) -> tuple[int | None, int]:
        """The chain that a prompt's start can be read from, and the tokens of that start; (None, 0) if it is not worth it."""
        shared = [(_common_prefix(prompt[:-1], other), -chain) for chain, other in self._roots]
        common, chain = max(shared, default=(0, 0))
        return (-chain, common) if common >= WORTH_SHARING else (None, 0)

    def add(self, item: AnswerItem, root: int | None, common: int) -> None:
        """Append an item whose first ``common`` tokens are those of the chain ``root``."""
        chain, prompt = len(self._chains), item.prompt
        if root is None:
            self._roots.append((chain, prompt))
        for number, answer in enumerate(item.answers):
            if number == 0:
                self._append(prompt[common:], answer, root, common)
            else:
                self._append(prompt[-1:], answer, chain, len(prompt) - 1 - common)

    def _append(self, before: np.ndarray, answer: np.ndarray, parent: int | None, attach: int) -> None:
        """Append a chain that reads ``before`` and the answer, whose last token predicts nothing that is asked for."""
        tokens = np.concatenate([before, answer[:-1]])
        labels = np.full(len(tokens), IGNORE_INDEX, dtype=np.int64)
        labels[len(before) - 1 :] = answer
        owner = np.where(labels == IGNORE_INDEX, -1, self._num_answers)
        self._num_answers += 1
        self._extend(tokens, labels, owner, parent, attach)

    def _extend(self, tokens: np.ndarray, labels: np.ndarray, owner: np.ndarray, parent: int | None, attach: int) -> None:
        self._chains.append(Chain(self.length, len(tokens), parent, attach))
        self.length += len(tokens)
        for name, values in (("tokens", tokens), ("labels", labels), ("owner", owner)):
            self._columns[name].append(values.astype(np.int64))

    def finish(self, multiple: int) -> AnswerBatch:
        if padding := -self.length % multiple:
            self._extend(np.zeros(padding), np.full(padding, IGNORE_INDEX), np.full(padding, -1), None, 0)
        columns = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in self._columns.items()}
        positions = np.concatenate([np.asarray(each, dtype=np.int64) for each in chain_positions(self._chains)])
        return AnswerBatch(
            **columns, position_ids=torch.from_numpy(positions), chains=tuple(self._chains), num_answers=self._num_answers
        )


def _common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    shorter = min(len(first), len(second))
    different = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(different[0]) if len(different) else shorter
