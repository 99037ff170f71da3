"""Fill the reference cache of datasets, in any layout, going on where an interrupted run stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from megatron_longpo.config.schema import ReferenceConfig
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.parallel.collectives import gather_objects
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.reference.cache import ReferenceCache, ReferenceFingerprint, cache_path
from megatron_longpo.reference.live import reference_logps
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.progress import progress_bar

_PAIRS_AT_ONCE = 4
_SECONDS_BETWEEN_SAVES = 30.0


def open_cache(dataset: PreferenceDataset, fingerprint: ReferenceFingerprint, *, overwrite: bool) -> ReferenceCache:
    """The cache to fill: what an earlier run left, if it was computed from the same things, else an empty one.

    Raises:
        UserError: if there is a cache computed from something else and ``overwrite`` is off.
    """
    path = cache_path(dataset.prefix, fingerprint.context)
    if path.exists():
        found = ReferenceCache.read(path)
        different = found.fingerprint.differences(fingerprint)
        if not different:
            return found
        if not overwrite:
            raise UserError(f"{path}: computed from another {' and '.join(different)}; give --overwrite to replace it")
    return ReferenceCache.empty(fingerprint, [dataset.num_turns(index) for index in range(len(dataset))])


def fill_cache(
    cache: ReferenceCache,
    dataset: PreferenceDataset,
    model: Sequence[torch.nn.Module],
    reference: ReferenceConfig,
    state: ParallelState,
) -> int:
    """Compute what is missing and write the cache; it is written every half minute on the way.

    Returns:
        Number of pairs computed.

    Raises:
        UserError: if a log-prob is not finite, naming the document.

    Parallel: data-parallel ranks divide the pairs; results are gathered over the world; the first rank writes.
    """
    path = cache_path(dataset.prefix, reference.reference_context)
    missing, saved_at = cache.missing(), time.monotonic()
    stride = _PAIRS_AT_ONCE * state.dp_group.size()
    bar = _progress(len(missing), is_writer=state.rank == 0)
    for start in range(0, len(missing), stride):
        mine = [(0, index) for index in missing[start : start + stride][state.dp_group.rank() :: state.dp_group.size()]]
        scored = reference_logps(model, mine, [dataset], reference.reference_context, state)
        for part in gather_objects(scored):
            for (_, index), logps in part.items():
                _store(cache, dataset, index, logps)
        bar.update(min(stride, len(missing) - start))
        if state.rank == 0 and time.monotonic() - saved_at > _SECONDS_BETWEEN_SAVES:
            cache.save(path)
            saved_at = time.monotonic()
    bar.close()
    if missing and state.rank == 0:
        cache.save(path)
    return len(missing)


def _store(cache: ReferenceCache, dataset: PreferenceDataset, index: int, logps: np.ndarray) -> None:
    if not np.isfinite(logps).all():
        raise UserError(f"{dataset.prefix}: the reference's log-probs of document {dataset.document_id(index)} are not finite")
    pair = dataset[index]
    spans = zip(pair.chosen.answer_spans, pair.rejected.answer_spans, strict=True)
    cache.store(index, logps, np.array([[c_end - c_start, r_end - r_start] for (c_start, c_end), (r_start, r_end) in spans]))


def _progress(total: int, *, is_writer: bool) -> Any:
    return progress_bar(total=total, desc="reference log-probs", unit="pair", shown=is_writer)
