"""A small real training problem on disk: a random model of a family, pairs, and the reference cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.config.schema import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
)

BETA, ROTARY_BASE = 0.1, 50_000.0


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Paths of the problem.

    Attributes:
        hf: Hugging Face folder.
        native: converted checkpoint.
        prefix: dataset.
    """

    hf: Path
    native: Path
    prefix: Path

    def config(self, **changes: Any) -> RunConfig:
        """A run on it: SGD, no clipping, a policy RoPE base unlike the reference's; ``changes`` replace fields by name."""
        config = RunConfig(
            model=ModelConfig(pretrained_checkpoint=str(self.native), rotary_base=ROTARY_BASE),
            data=DataConfig(data_path=(str(self.prefix),)),
            objective=ObjectiveConfig(beta=BETA, preference_weight=0.5),
            optimizer=OptimizerConfig(optimizer="sgd", lr=0.05, lr_decay_style="constant", lr_warmup_iters=0, clip_grad=0.0),
            training=TrainingConfig(train_iters=1, global_batch_size=4, logit_chunk_size=100),
            checkpoint=CheckpointConfig(),
        )
        return with_fields(config, **changes)


def with_fields(config: RunConfig, **changes: Any) -> RunConfig:
    """A configuration with fields replaced, whichever group they are in."""
    groups = {}
    for group in dataclasses.fields(config):
        value = getattr(config, group.name)
        names = {field.name for field in dataclasses.fields(value)}
        groups[group.name] = dataclasses.replace(value, **{name: changes[name] for name in names & changes.keys()})
    return dataclasses.replace(config, **groups)


def make_scenario(
    folder: Path,
    family: str = "llama",
    *,
    num_documents: int = 5,
    num_turns: int = 2,
    num_words: int | Sequence[int] = 70,
    **overrides: Any,
) -> Scenario:
    """Make model, native checkpoint and dataset through the product's own code (without the reference cache)."""
    from megatron_longpo.conversion.import_hf import hf_to_mcore
    from megatron_longpo.conversion.workers import Workers
    from tests.support.hf_models import make_hf_model
    from tests.support.make_data import make_dataset

    scenario = Scenario(folder / "hf", folder / "native", folder / "data" / "pairs")
    make_hf_model(scenario.hf, family, **overrides)
    hf_to_mcore(scenario.hf, scenario.native, Workers())
    make_dataset(
        scenario.prefix,
        num_documents=num_documents,
        num_turns=num_turns,
        vocab_size=320,
        num_words=num_words,
        tokenizer=scenario.hf,
    )
    return scenario


def fill_reference(scenario: Scenario, context: str = "short", parallel: Any = None) -> None:
    """Fill the scenario's reference cache on the ranks of this process group (runs inside a worker)."""
    from megatron_longpo.config.context_layout import choose_exchange
    from megatron_longpo.config.schema import ParallelConfig, ReferenceConfig
    from megatron_longpo.data.dataset import PreferenceDataset
    from megatron_longpo.parallel import state as parallel_state
    from megatron_longpo.training.precompute import fill_cache, open_cache
    from megatron_longpo.training.pretrained import build_frozen_model, read_record, reference_fingerprint

    parallel = parallel or ParallelConfig()
    record = read_record(str(scenario.native))
    dataset = PreferenceDataset(str(scenario.prefix))
    training, reference = TrainingConfig(), ReferenceConfig(reference_context=context)  # type: ignore[arg-type]
    parallel, _ = choose_exchange(parallel, record.architecture, 1024, bytes_per_element=4)
    state = parallel_state.initialize(parallel)
    try:
        fingerprint = reference_fingerprint(
            dataset, record, str(scenario.native), record.architecture, reference.reference_context, training
        )
        cache = open_cache(dataset, fingerprint, overwrite=True)
        model = build_frozen_model(record.architecture, str(scenario.native), parallel, training, state)
        fill_cache(cache, dataset, model, reference, state)
    finally:
        parallel_state.destroy()
