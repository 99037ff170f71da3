"""Which source of reference log-probs a run uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron.core.distributed import DistributedDataParallel

from megatron_longpo.config.loss_types import LOSS_TYPES, reference_contexts
from megatron_longpo.config.schema import ReferenceContext, RunConfig
from megatron_longpo.config.validate import whole_distributions_are_computed
from megatron_longpo.data.batch import RankBatch
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.loader import ComputedReference, JoinedReference, ReferenceSource, SampleId, rank_batches
from megatron_longpo.data.packing import PackingOptions
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.gpt import LogProbGPTModel
from megatron_longpo.models.lora import base_alone
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.reference.cache import CachedReference, ReferenceCache, ReferenceFingerprint
from megatron_longpo.reference.live import reference_logps
from megatron_longpo.reference.teacher import with_teacher
from megatron_longpo.training.data import RunData
from megatron_longpo.training.pretrained import build_frozen_model, read_record, reference_fingerprint, with_rotary_base
from megatron_longpo.utils.errors import UserError


class RunReference:
    """Reference log-probs for the micro-batches of an iteration: cached, live, or none where the objective needs none."""

    def __init__(self, config: RunConfig, data: RunData, state: ParallelState) -> None:
        """Open the caches, or load the frozen model; of a run with adapters that is the policy's own base, see `share`.

        Raises:
            UserError: if a cache is absent, incomplete, not finite, or was computed from something else.
        """
        self._data, self._state = data, state
        self._contexts = reference_contexts(config.objective, config.reference)
        self._cached: ReferenceSource | None = None
        self._model: Sequence[LogProbGPTModel] | None = None
        self._shares_base = self._is_live = self._teaches = False
        if not self._contexts:
            return
        for problem in whole_distributions_are_computed(config, 1):
            raise UserError(problem)
        checkpoint = config.reference.reference_checkpoint or config.model.pretrained_checkpoint
        assert checkpoint is not None
        record = read_record(checkpoint)
        architecture = self._architecture = with_rotary_base(record.architecture, config.reference.reference_rotary_base)
        self._is_live = config.reference.reference == "live"
        self._teaches = LOSS_TYPES[config.objective.loss_type].distribution
        if self._teaches:
            _check_same_words(config, architecture)
        if self._is_live:
            self._shares_base = has_policys_base(config)
            if not self._shares_base:
                self._model = build_frozen_model(architecture, checkpoint, config.parallel, config.training, state)
            return

        def expected(dataset: PreferenceDataset, context: ReferenceContext) -> ReferenceFingerprint:
            return reference_fingerprint(dataset, record, checkpoint, architecture, context, config.training)

        self._cached = JoinedReference(
            [
                CachedReference([ReferenceCache.load(each.prefix, expected(each, context)) for each in data.datasets])
                for context in self._contexts
            ]
        )

    def share(self, model: Sequence[DistributedDataParallel]) -> None:
        """Let a live reference be the base of a policy with adapters, where it is the same model."""
        if self._shares_base:
            self._model = [chunk.module for chunk in model]

    def batches(self, micro_batches: Sequence[Sequence[SampleId]], options: PackingOptions) -> list[RankBatch]:
        """Pack this rank's micro-batches with what the objective needs of the reference; a live one computes it now.

        Raises:
            UserError: if whole distributions are needed, and an answer is other tokens in the short chat than in the long one.

        Parallel: the tensor group; live: all groups but the data-parallel one.
        """
        datasets, state = self._data.datasets, self._state
        batches = list(rank_batches(micro_batches, datasets, self.source(micro_batches), options, state))
        if not self._teaches:
            return batches
        with self._reading() as model:
            return with_teacher(model, batches, datasets, state)

    def source(self, micro_batches: Sequence[Sequence[SampleId]]) -> ReferenceSource | None:
        """The source of log-probs for this rank's micro-batches; a live reference scores them now.

        Parallel: live: all groups but the data-parallel one.
        """
        if not self._is_live or self._teaches:
            return self._cached
        samples = sorted({sample for samples in micro_batches for sample in samples})
        datasets = self._data.datasets
        with self._reading() as model:
            scored = [reference_logps(model, samples, datasets, context, self._state) for context in self._contexts]
        return JoinedReference([ComputedReference(logps) for logps in scored])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Sequence[LogProbGPTModel]]:
        """The live reference, for as long as the context lasts."""
        assert self._model is not None, "the policy was not shared"
        with base_alone(self._model, self._architecture) if self._shares_base else contextlib.nullcontext():
            yield self._model


def _check_same_words(config: RunConfig, architecture: ModelArchitecture) -> None:
    words = read_record(str(config.model.pretrained_checkpoint)).architecture.vocab_size
    if architecture.vocab_size != words:
        raise UserError(
            f"{config.reference.reference_checkpoint}: has {architecture.vocab_size} words, the policy {words}; "
            f"--loss-type {config.objective.loss_type} compares distributions over the same ones, so choose a model of one family"
        )


def has_policys_base(config: RunConfig) -> bool:
    """Whether the reference's weights are the frozen ones under the policy's adapters."""
    policy, reference = config.model.pretrained_checkpoint, config.reference.reference_checkpoint
    return config.lora.lora_rank is not None and Path(reference or str(policy)).resolve() == Path(str(policy)).resolve()
