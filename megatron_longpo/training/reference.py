"""Which source of reference log-probs a run uses."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from megatron.core.distributed import DistributedDataParallel

from megatron_longpo.config.loss_types import reference_contexts
from megatron_longpo.config.schema import RunConfig
from megatron_longpo.data.loader import ComputedReference, ReferenceSource, SampleId
from megatron_longpo.models.gpt import LogProbGPTModel
from megatron_longpo.models.lora import base_alone
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.reference.cache import CachedReference, ReferenceCache
from megatron_longpo.reference.live import reference_logps
from megatron_longpo.training.data import RunData
from megatron_longpo.training.pretrained import build_frozen_model, read_record, reference_fingerprint, with_rotary_base


class RunReference:
    """Reference log-probs for the micro-batches of an iteration: cached, live, or none where the objective needs none."""

    def __init__(self, config: RunConfig, data: RunData, state: ParallelState) -> None:
        """Open the caches, or load the frozen model; of a run with adapters that is the policy's own base, see `share`.

        Raises:
            UserError: if a cache is absent, incomplete, not finite, or was computed from something else.
        """
        self._data, self._state, self._context = data, state, config.reference.reference_context
        self._cached: CachedReference | None = None
        self._model: Sequence[LogProbGPTModel] | None = None
        self._shares_base = False
        if not reference_contexts(config.objective, config.reference):
            return
        checkpoint = config.reference.reference_checkpoint or config.model.pretrained_checkpoint
        assert checkpoint is not None
        record = read_record(checkpoint)
        architecture = self._architecture = with_rotary_base(record.architecture, config.reference.reference_rotary_base)
        if config.reference.reference == "live":
            self._shares_base = has_policys_base(config)
            if not self._shares_base:
                self._model = build_frozen_model(architecture, checkpoint, config.parallel, config.training, state)
            return
        expected = [
            reference_fingerprint(dataset, record, checkpoint, architecture, self._context, config.training)
            for dataset in data.datasets
        ]
        caches = [ReferenceCache.load(dataset.prefix, part) for dataset, part in zip(data.datasets, expected, strict=True)]
        self._cached = CachedReference(caches)

    def share(self, model: Sequence[DistributedDataParallel]) -> None:
        """Let a live reference be the base of a policy with adapters, where it is the same model."""
        if self._shares_base:
            self._model = [chunk.module for chunk in model]

    def source(self, micro_batches: Sequence[Sequence[SampleId]]) -> ReferenceSource | None:
        """The source for this rank's micro-batches; a live reference scores them now.

        Parallel: live: all groups but the data-parallel one.
        """
        if self._model is None:
            assert not self._shares_base, "the policy was not shared"
            return self._cached
        samples = sorted({sample for samples in micro_batches for sample in samples})
        with base_alone(self._model, self._architecture) if self._shares_base else contextlib.nullcontext():
            scored = reference_logps(self._model, samples, self._data.datasets, self._context, self._state)
        return ComputedReference(scored)


def has_policys_base(config: RunConfig) -> bool:
    """Whether the reference's weights are the frozen ones under the policy's adapters."""
    policy, reference = config.model.pretrained_checkpoint, config.reference.reference_checkpoint
    return config.lora.lora_rank is not None and Path(reference or str(policy)).resolve() == Path(str(policy)).resolve()
