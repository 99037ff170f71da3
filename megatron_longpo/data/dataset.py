"""A tokenised dataset on disk, as a sequence of preference pairs."""

from __future__ import annotations

from pathlib import Path

from megatron_longpo.data.indexed import IndexedPairs
from megatron_longpo.data.layout import read_header, shared_prefix_length, unpack_pair
from megatron_longpo.data.manifest import read_manifest, record_file
from megatron_longpo.data.pair import PreferencePair
from megatron_longpo.utils.errors import UserError


class PreferenceDataset:
    """The pairs at ``PREFIX``. Holds no open state that a fork or a pickle could spoil.

    Attributes:
        prefix: the path without suffix.
        manifest: what the dataset is.
    """

    def __init__(self, prefix: str) -> None:
        """Open it; the manifest must be there and fit the files' sizes.

        Raises:
            UserError: it does not, or the index has another number of pairs.
        """
        self.prefix = prefix
        self.manifest = read_manifest(prefix)
        self._pairs = IndexedPairs(prefix)
        if len(self._pairs) != self.manifest.num_pairs:
            raise UserError(
                f"{prefix}.idx: has {len(self._pairs)} pairs, the manifest {self.manifest.num_pairs}; make the dataset anew"
            )

    def __len__(self) -> int:
        """Number of pairs."""
        return self.manifest.num_pairs

    def __getitem__(self, index: int) -> PreferencePair:
        """Pair ``index``.

        Raises:
            IndexError: there is no such pair.
            UserError: what is stored there is no pair.
        """
        self._check_index(index)
        try:
            return unpack_pair(self._pairs.sequences(index))
        except ValueError as error:
            raise self._broken(index, error) from None

    def document_id(self, index: int) -> str:
        """The record's id of pair ``index``.

        Raises:
            UserError: what is stored there is no pair.
        """
        self._check_index(index)
        try:
            return read_header(self._pairs.sequence(index, 0))[3]
        except ValueError as error:
            raise self._broken(index, error) from None

    def lengths(self, index: int) -> tuple[int, int]:
        """Tokens of the chosen and the rejected long side of pair ``index``, without reading them."""
        self._check_index(index)
        prefix = int(self._pairs.sequence(index, 0)[2])
        return self._pairs.sequence_length(index, 1), prefix + self._pairs.sequence_length(index, 2)

    def short_lengths(self, index: int) -> list[tuple[int, int, int]]:
        """Of each turn of pair ``index``: tokens of the chosen and the rejected short chat, and of the start that they share."""
        self._check_index(index)
        sequences = [self._pairs.sequence(index, place) for place in range(3, self._pairs.num_sequences(index))]
        sides = zip(sequences[0::2], sequences[1::2], strict=True)
        return [(len(chosen), len(rejected), shared_prefix_length(chosen, rejected)) for chosen, rejected in sides]

    def num_turns(self, index: int) -> int:
        """Turns of pair ``index``, from the index alone: header, two long sides, and two short ones a turn."""
        self._check_index(index)
        return (self._pairs.num_sequences(index) - 3) // 2

    def shared_prefix_length(self, index: int) -> int:
        """Tokens that the two long sides of pair ``index`` share at their start."""
        self._check_index(index)
        return int(self._pairs.sequence(index, 0)[2])

    def verify_hashes(self) -> list[str]:
        """Re-hash the files; what differs from the manifest, in words."""
        problems = []
        for suffix, expected in self.manifest.files.items():
            if record_file(Path(f"{self.prefix}.{suffix}")).sha256 != expected.sha256:
                problems.append(f"{self.prefix}.{suffix}: its content is not what its manifest recorded")
        return problems

    def _broken(self, index: int, error: ValueError) -> UserError:
        return UserError(f"{self.prefix}.bin: pair {index}: {error}; make the dataset anew")

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
