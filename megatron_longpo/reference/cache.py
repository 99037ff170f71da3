"""The reference's log-probs on disk: one file beside the dataset, with the fingerprint of everything that they depend on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.mapped_arrays import map_arrays, read_blocks


@dataclasses.dataclass(frozen=True)
class ReferenceFingerprint:
    """Everything that reference log-probs are a function of, by content.

    Attributes:
        data: hash of the tokenised pairs.
        tokenizer: fingerprint of the tokenizer that made them.
        template: fingerprint of the chat template.
        weights: hash of the reference model's Hugging Face weights.
        rope: RoPE base and scaling that the reference reads with.
        context: ``short`` or ``long``.
        precision: dtype that the reference computed in.
    """

    data: str
    tokenizer: str
    template: str
    weights: str
    rope: str
    context: str
    precision: str

    def differences(self, other: ReferenceFingerprint) -> list[str]:
        """Names of the parts that differ."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != getattr(other, field.name)]


def cache_path(prefix: str, context: str) -> Path:
    """Where a dataset's cache for a context lies."""
    return Path(f"{prefix}.reference-{context}.npz")


class ReferenceCache:
    """Reference log-probs of every pair of a dataset.

    Attributes:
        fingerprint: what they were computed from.
        offsets: ``[pairs + 1]`` int64, where each pair's turns start.
        logps: ``[turns, 2]`` float64 sums over (chosen, rejected) answers; NaN where not computed yet.
        tokens: ``[turns, 2]`` int64 answer tokens.
    """

    def __init__(self, fingerprint: ReferenceFingerprint, offsets: np.ndarray, logps: np.ndarray, tokens: np.ndarray) -> None:
        """Take the arrays; see the class."""
        self.fingerprint, self.offsets, self._logps, self.tokens = fingerprint, offsets, logps, tokens

    @classmethod
    def empty(cls, fingerprint: ReferenceFingerprint, turns_of_pairs: list[int]) -> ReferenceCache:
        """A cache in which nothing is computed yet."""
        offsets = np.concatenate([[0], np.cumsum(turns_of_pairs)]).astype(np.int64)
        return cls(fingerprint, offsets, np.full((offsets[-1], 2), np.nan), np.zeros((offsets[-1], 2), dtype=np.int64))

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.offsets) - 1

    def pair_logps(self, index: int) -> np.ndarray:
        """``[t, 2]`` log-probs of a pair's turns."""
        return self._logps[self.offsets[index] : self.offsets[index + 1]]

    def store(self, index: int, logps: np.ndarray, tokens: np.ndarray) -> None:
        """Fill in a pair."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        self._logps[rows], self.tokens[rows] = logps, tokens

    def missing(self) -> list[int]:
        """Indices of pairs that are not computed yet."""
        turns = np.flatnonzero(np.isnan(self._logps).any(axis=1))
        return np.unique(np.searchsorted(self.offsets, turns, side="right") - 1).tolist()

    def save(self, path: Path) -> None:
        """Write atomically."""
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            np.savez(
                file,
                fingerprint=np.array(json.dumps(dataclasses.asdict(self.fingerprint))),
                offsets=self.offsets,
                logps=self._logps,
                tokens=self.tokens,
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> ReferenceCache:
        """Read a cache, complete or not.

        Raises:
            UserError: if the file is not a reference cache.
        """
        with _told_as_no_cache(path), np.load(path, allow_pickle=False) as arrays:
            return cls(_read_fingerprint(arrays), arrays["offsets"], arrays["logps"], arrays["tokens"])

    @classmethod
    def load(cls, prefix: str, expected: ReferenceFingerprint) -> ReferenceCache:
        """Map the complete cache of a dataset for training; it takes no memory until a pair is asked for.

        Raises:
            UserError: if it is absent, was computed from something else (naming what), is incomplete or is not finite.
        """
        path = cache_path(prefix, expected.context)
        cure = "run tools/precompute_reference_logprobs.py with this reference and dataset"
        if not path.exists():
            raise UserError(f"{path}: no reference log-probs for this dataset; {cure}, or train with --reference live")
        with _told_as_no_cache(path):
            with np.load(path, allow_pickle=False) as arrays:
                cache = cls(_read_fingerprint(arrays), *map_arrays(path, ("offsets", "logps", "tokens")))
            is_finite = all(np.isfinite(block).all() for block in read_blocks(path, "logps"))
        different = cache.fingerprint.differences(expected)
        if different:
            parts = "; ".join(
                f"{name}: cache has {getattr(cache.fingerprint, name)}, this run needs {getattr(expected, name)}"
                for name in different
            )
            raise UserError(f"{path}: computed from another {' and '.join(different)} ({parts}); {cure} and --overwrite")
        if is_finite:
            return cache
        if cache.missing():
            raise UserError(f"{path}: incomplete, {len(cache.missing())} of {len(cache)} pairs are missing; {cure}")
        bad = next(i for i in range(len(cache)) if not np.isfinite(cache.pair_logps(i)).all())
        raise UserError(f"{path}: log-probs of pair {bad} are not finite; {cure} and --overwrite")


def _read_fingerprint(arrays: Any) -> ReferenceFingerprint:
    return ReferenceFingerprint(**json.loads(str(arrays["fingerprint"])))


@contextlib.contextmanager
def _told_as_no_cache(path: Path) -> Iterator[None]:
    """Tell what reading a file that is no cache raises as the user's error."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, EOFError, struct.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a reference cache ({error}); run tools/precompute_reference_logprobs.py again") from error


class CachedReference:
    """Caches of several datasets as one source by sample."""

    def __init__(self, caches: list[ReferenceCache]) -> None:
        """Take one cache a dataset, in order."""
        self._caches = caches

    def logps(self, sample: tuple[int, int]) -> np.ndarray:
        """``[t, 2]`` log-probs of a sample's turns."""
        dataset, index = sample
        return self._caches[dataset].pair_logps(index)
