"""Which records make which dataset: every document once, so many of each input, and a share for each split."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from megatron_longpo.utils.errors import UserError

SPLIT_NAMES = ("train", "validation", "test")
NOWHERE = 255
"""In place of the number of a dataset: the record is in none."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """Where records go.

    Attributes:
        outputs: uint8 ``[records]``: the number of each record's dataset, or `NOWHERE`.
        duplicates: for each dataset, how many records are left out because their document is in it.
        taken: for each input, how many of its records are in a dataset.
    """

    outputs: np.ndarray
    duplicates: tuple[int, ...]
    taken: tuple[int, ...]


def parse_shares(text: str) -> tuple[float, ...]:
    """Read ``"98,2"`` or ``"96,2,2"``: the shares of train, validation and test.

    Raises:
        UserError: it is not two or three positive numbers.
    """
    try:
        shares = tuple(float(share) for share in text.split(","))
    except ValueError:
        shares = ()
    if not 2 <= len(shares) <= len(SPLIT_NAMES) or not all(0 < share < float("inf") for share in shares):
        raise UserError(f"--split {text}: give the shares of train and validation, and of test if you like, such as 98,2")
    return shares


def first_equal(hashes: np.ndarray) -> np.ndarray:
    """For each row of ``[n, 2]``, the first row that equals it: int64 ``[n]``."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal rows stay in their order
    ordered = hashes[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def select(
    contents: np.ndarray, counts: Sequence[int], takes: Sequence[int | None], shares: Sequence[float], deduplicate: bool
) -> Selection:
    """Choose records and divide them.

    The choice depends on the documents alone, through their hashes: one half of a hash orders the records of an input, of which
    the first are taken, the other half orders the documents, which are divided in that order. So another input, or a document
    more, changes little, and a document is in one dataset only, however many records it has.

    Args:
        contents: uint64 ``[records, 2]``: hashes of the documents.
        counts: records of each input.
        takes: how many records of each input to take; None takes all.
        shares: of the datasets.
        deduplicate: leave out records whose document is that of one that was taken, of this input or an earlier one.

    Raises:
        UserError: an input has fewer records than are to be taken, or there are more datasets than documents.
    """
    first = first_equal(contents)
    chosen = np.zeros(len(contents), dtype=bool)
    claimed = np.zeros(len(contents), dtype=bool)  # by the first record of a document
    start = 0
    for number, (count, take) in enumerate(zip(counts, takes, strict=True)):
        records = np.arange(start, start + count)
        start += count
        if deduplicate:
            records = records[~claimed[first[records]]]
            records = records[np.sort(np.unique(first[records], return_index=True)[1])]
        if take is not None:
            if take > len(records):
                raise UserError(f"--input: number {number + 1} has {len(records)} records to take, not {take}; ask for fewer")
            records = records[np.argsort(contents[records, 0], kind="stable")[:take]]
        chosen[records] = True
        claimed[first[records]] = True
    documents = np.flatnonzero(claimed)
    output_of = np.full(len(contents), NOWHERE, dtype=np.uint8)
    output_of[documents[np.argsort(contents[documents, 1], kind="stable")]] = _divide(len(documents), shares)
    outputs = np.where(chosen, output_of[first], NOWHERE).astype(np.uint8)
    repeated = output_of[first[~chosen & claimed[first]]] if deduplicate else output_of[:0]
    bounds = np.cumsum([0, *counts])
    return Selection(
        outputs=outputs,
        duplicates=tuple(int((repeated == output).sum()) for output in range(len(shares))),
        taken=tuple(int(chosen[low:high].sum()) for low, high in itertools.pairwise(bounds)),
    )


def _divide(num_documents: int, shares: Sequence[float]) -> np.ndarray:
    """The dataset of each document in their random order: the smaller ones get at least one, the first what is left."""
    sizes = [max(1, round(num_documents * share / sum(shares))) for share in shares[1:]]
    if num_documents <= sum(sizes) and sizes:
        raise UserError(f"--split: {num_documents} documents do not make {len(shares)} datasets; give more, or other shares")
    return np.repeat(np.arange(len(shares), dtype=np.uint8), [num_documents - sum(sizes), *sizes])
