"""Documents divided over jobs: job ``i`` of ``n`` takes every ``n``-th document, starting with document ``i``."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from megatron_longpo.generation.documents import Document, DocumentSource
from megatron_longpo.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Shard:
    """A job's share; ``0/1`` is everything.

    Attributes:
        index: from 0.
        count: number of jobs.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``i/n``, such as ``$SLURM_ARRAY_TASK_ID/8`` gives.

        Raises:
            UserError: it is not two numbers with ``0 <= i < n``.
        """
        try:
            index, count = map(int, text.split("/"))
        except ValueError:
            index, count = 0, 0
        if not 0 <= index < count:
            raise UserError(f"--shard {text}: give i/n with i from 0 to n - 1, for example 0/4, 1/4, 2/4 and 3/4 to four jobs")
        return cls(index, count)

    def path(self, output: Path) -> Path:
        """Return where this share of an output goes."""
        return output if self.count == 1 else output.with_name(f"{output.name}.shard-{self.index:05d}-of-{self.count:05d}")


def read_share(source: DocumentSource, shard: Shard, max_documents: int | None) -> Iterator[Document]:
    """Yield a share of the first ``max_documents`` documents."""
    return itertools.islice(source.read(), shard.index, max_documents, shard.count)
