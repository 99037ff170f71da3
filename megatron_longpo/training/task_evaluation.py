"""Scores on the run's evaluation tasks, in any layout."""

from __future__ import annotations

from collections.abc import Sequence

from megatron.core.distributed import DistributedDataParallel

from megatron_longpo.config.schema import RunConfig
from megatron_longpo.parallel.collectives import gather_objects
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.training.answers import AnswerScore, score_answers
from megatron_longpo.training.checkpoint import gather_weights
from megatron_longpo.training.eval_tasks import NLL, EvalSample, divide
from megatron_longpo.utils.progress import progress_bar


class TaskEvaluation:
    """Evaluates a model in training, again and again on the same samples. Data-parallel ranks divide them."""

    def __init__(self, samples: Sequence[EvalSample], config: RunConfig, state: ParallelState) -> None:
        """Make this rank's prompts.

        Raises:
            UserError: one does not fit the model's vocabulary.
        """
        self._samples, self._state, self._max_rows = samples, state, config.data.seq_length
        self._mine = divide(samples, state.dp_group.size())[state.dp_group.rank()]
        bar = progress_bar(self._mine, desc="Making prompts", unit="prompt", leave=False, shown=state.rank == 0)
        self._items = [samples[number].make() for number in bar]

    def measure(self, model: Sequence[DistributedDataParallel]) -> dict[str, float]:
        """Score the samples.

        Returns:
            By ``eval/LABEL`` the share that is solved, and by ``eval/LABEL/nll`` the mean of the answers' negative log-probs per
            token; the same on every rank.

        Parallel: as `score_answers`; then an all-gather over the data-parallel group.
        """
        gather_weights(model)  # now, on all ranks: a forward pass would begin it, and some ranks may have no sample
        chunks = [chunk.module for chunk in model]
        scores = score_answers(chunks, self._items, self._max_rows, self._state, progress=self._state.rank == 0)
        scored: dict[int, AnswerScore] = {}
        for part in gather_objects(dict(zip(self._mine, scores, strict=True)), self._state.dp_group):
            scored |= part
        return self._means(scored)

    def _means(self, scored: dict[int, AnswerScore]) -> dict[str, float]:
        by_label: dict[str, list[AnswerScore]] = {}
        for number, sample in enumerate(self._samples):
            for label in sample.labels:
                by_label.setdefault(label, []).append(scored[number])
        means = {}
        for label, some in by_label.items():
            means[f"eval/{label}"] = sum(score.solved for score in some) / len(some)
            means[f"eval/{label}/{NLL}"] = sum(score.nll for score in some) / len(some)
        return means
