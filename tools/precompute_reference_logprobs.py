"""Compute the reference's log-probs of every answer once, and keep them beside the dataset.

The reference reads each turn's short context alone, with its own RoPE base (LongPO), or the long chat (--reference-context
long). Runs in any layout under torchrun; a run that was interrupted goes on; a finished cache is left alone:

    python tools/precompute_reference_logprobs.py --reference-checkpoint checkpoints/mistral --data-path data/books
    torchrun --nproc-per-node 8 tools/precompute_reference_logprobs.py --tensor-model-parallel-size 2 ...
"""

from __future__ import annotations

import argparse
import os

from megatron_longpo.config.cli import add_config_group, read_config_group
from megatron_longpo.config.fields import fields_by_name
from megatron_longpo.config.schema import ParallelConfig, ReferenceConfig, TrainingConfig
from megatron_longpo.utils.errors import UserError, run_command

# settings of the layout that mean nothing without training
TRAINING_ONLY = ("use_distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather")


def build_parser() -> argparse.ArgumentParser:
    """The command line: the training command's flags where the meaning is the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data-path", nargs="+", required=True, metavar="PREFIX", help="dataset prefixes")
    parser.add_argument("--overwrite", action="store_true", help="replace a cache that was computed from something else")
    parser.add_argument("--bf16", action="store_true", help=fields_by_name()["bf16"].doc)
    add_config_group(parser, ReferenceConfig, omit=("reference",))
    add_config_group(parser, ParallelConfig, omit=TRAINING_ONLY)
    return parser


def main() -> None:
    """Run the command."""
    arguments = build_parser().parse_args()
    reference = read_config_group(arguments, ReferenceConfig)
    parallel = read_config_group(arguments, ParallelConfig)
    training = TrainingConfig(bf16=arguments.bf16)
    if reference.reference_checkpoint is None:
        raise UserError("--reference-checkpoint is missing: which model's log-probs?")

    from megatron_longpo.config.context_layout import choose_exchange
    from megatron_longpo.config.layout import check_layout
    from megatron_longpo.data.dataset import PreferenceDataset
    from megatron_longpo.models.transformer_config import virtual_pipeline_size
    from megatron_longpo.parallel import state as parallel_state
    from megatron_longpo.reference.cache import cache_path
    from megatron_longpo.training.precompute import fill_cache, open_cache
    from megatron_longpo.training.pretrained import (
        build_frozen_model,
        check_hardware,
        read_record,
        reference_fingerprint,
        with_rotary_base,
    )

    checkpoint = reference.reference_checkpoint
    record = read_record(checkpoint)
    architecture = with_rotary_base(record.architecture, reference.reference_rotary_base)
    check_layout(parallel, architecture, int(os.environ.get("WORLD_SIZE", "1")))
    check_hardware(training, architecture)
    datasets = [PreferenceDataset(prefix) for prefix in arguments.data_path]
    longest = max((side["maximum"] for dataset in datasets for side in dataset.manifest.lengths.values()), default=0)
    parallel, _ = choose_exchange(parallel, architecture, int(longest), bytes_per_element=2 if training.bf16 else 4)
    context = reference.reference_context
    caches = [
        open_cache(
            dataset,
            reference_fingerprint(dataset, record, checkpoint, architecture, context, training),
            overwrite=arguments.overwrite,
        )
        for dataset in datasets
    ]
    state = parallel_state.initialize(parallel, virtual_pipeline_size=virtual_pipeline_size(architecture, parallel))
    is_complete = not any(cache.missing() for cache in caches)
    model = [] if is_complete else build_frozen_model(architecture, checkpoint, parallel, training, state)
    for cache, dataset in zip(caches, datasets, strict=True):
        computed = fill_cache(cache, dataset, model, reference, state)
        if state.rank == 0:
            print(f"{cache_path(dataset.prefix, context)}: {len(cache)} pairs, {computed} computed now")
    parallel_state.destroy()


if __name__ == "__main__":
    run_command(main)
