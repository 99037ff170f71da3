"""Our side of the contests: the product's own model, packing, reference scoring, optimizer and train step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.problem import POLICY_ROTARY_BASE, Problem, make_pair
from megatron_longpo.config.context_layout import choose_exchange
from megatron_longpo.config.schema import ModelConfig, ObjectiveConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainingConfig
from megatron_longpo.data.batch import RankBatch
from megatron_longpo.data.loader import ComputedReference, rank_batches
from megatron_longpo.data.pair import PreferencePair
from megatron_longpo.models.gpt import build_model
from megatron_longpo.parallel import state as parallel_state
from megatron_longpo.reference.live import reference_logps
from megatron_longpo.training.checkpoint import load_weights
from megatron_longpo.training.data import packing_options
from megatron_longpo.training.optimizer import build_optimizer
from megatron_longpo.training.pretrained import build_frozen_model, read_record, with_rotary_base
from megatron_longpo.training.step import StepContext, train_step, wrap_data_parallel

DPO = ObjectiveConfig(nll_weight=0.0, preference_weight=1.0)


class OurTrainer:
    """A model and its optimizer, as `pretrain_longpo.py` puts them together. The learning rate is 0: every step is the same."""

    def __init__(
        self, native: Path, *, objective: ObjectiveConfig | None = None, parallel: ParallelConfig | None = None, pairs: int = 1
    ) -> None:
        """Build.

        Args:
            native: checkpoint.
            objective: terms of the loss; the default is LongPO's.
            parallel: layout.
            pairs: pairs in a step; each is a micro-batch.
        """
        objective = objective or ObjectiveConfig()
        self.native, self.record = native, read_record(str(native))
        architecture = with_rotary_base(self.record.architecture, POLICY_ROTARY_BASE)
        layout, _ = choose_exchange(parallel or ParallelConfig(), architecture, 0, bytes_per_element=4)
        self.config = RunConfig(
            model=ModelConfig(pretrained_checkpoint=str(native), rotary_base=POLICY_ROTARY_BASE),
            parallel=layout,
            objective=objective,
            optimizer=OptimizerConfig(lr=0.0),
            training=TrainingConfig(train_iters=1, global_batch_size=pairs),
        )
        self.state = parallel_state.initialize(self.config.parallel)
        chunks = build_model(architecture, self.config.parallel, self.config.training, self.state)
        load_weights(chunks, str(native))
        self.model = wrap_data_parallel(chunks, self.config)
        self.optimizer = build_optimizer(self.config, self.model)
        self.context = StepContext(self.config.objective, pairs, 1, self.state)

    def reference(self, pairs: Sequence[PreferencePair]) -> ComputedReference:
        """Log-probs of the pairs under the frozen model: what the cache beside a dataset holds."""
        context = "short" if self.config.objective.nll_weight else "long"
        architecture = self.record.architecture
        if context == "long":
            architecture = with_rotary_base(architecture, POLICY_ROTARY_BASE)
        model = build_frozen_model(architecture, str(self.native), self.config.parallel, self.config.training, self.state)
        samples = [(0, index) for index in range(len(pairs))]
        return ComputedReference(reference_logps(model, samples, [pairs], context, self.state))  # type: ignore[arg-type]

    def batches(self, pairs: Sequence[PreferencePair], reference: ComputedReference) -> list[RankBatch]:
        """Pack pairs, each as a micro-batch."""
        samples = [[(0, index)] for index in range(len(pairs))]
        return list(rank_batches(samples, [pairs], reference, packing_options(self.config, self.state), self.state))

    def zero_gradients(self) -> None:
        """What a step begins with."""
        for chunk in self.model:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def step(self, pairs: Sequence[PreferencePair], reference: ComputedReference) -> dict[str, float]:
        """One update, from pairs to weights; each pair is a micro-batch."""
        return train_step(self.model, self.optimizer, self.batches(pairs, reference), self.context)


@dataclasses.dataclass(frozen=True)
class OurStep:
    """A step on one pair, ready to be called."""

    trainer: OurTrainer
    pairs: tuple[PreferencePair, ...]
    reference: ComputedReference

    @classmethod
    def of(cls, problem: Problem, native: Path, **options: Any) -> OurStep:
        """Build, and take one short step, so that gradients and optimizer state stand."""
        trainer = OurTrainer(native, **options)
        warm_up = [make_pair(problem.shortened())] * trainer.context.global_batch_size
        trainer.step(warm_up, trainer.reference(warm_up))
        return cls._with(trainer, problem)

    @classmethod
    def _with(cls, trainer: OurTrainer, problem: Problem) -> OurStep:
        pairs = (make_pair(problem),) * trainer.context.global_batch_size
        return cls(trainer, pairs, trainer.reference(pairs))

    def on(self, problem: Problem) -> OurStep:
        """The step of the same trainer on another problem."""
        return self._with(self.trainer, problem)

    def __call__(self) -> dict[str, float]:
        """Loss and gradient norm."""
        metrics = self.trainer.step(self.pairs, self.reference)
        return {"loss": metrics["loss"], "grad_norm": metrics["grad_norm"]}
