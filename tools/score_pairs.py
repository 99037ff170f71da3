r"""Score pairs with the objective, without training: the metrics of a model on a dataset, as training would report them.

Takes the training command's flags (layout, objective, reference) and no length of training. The whole dataset is one batch:

    python tools/score_pairs.py --pretrained-checkpoint checkpoints/trained --reference-checkpoint checkpoints/mistral \\
        --rotary-base 1e7 --data-path data/books --output scores.json
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from megatron_longpo.config.cli import add_config_group, read_config_group
from megatron_longpo.config.schema import DataConfig, ModelConfig, ObjectiveConfig, ParallelConfig, ReferenceConfig, RunConfig
from megatron_longpo.utils.errors import UserError, run_command

# each group, and its settings that mean nothing without training
GROUPS = {
    ModelConfig: ("random_init", "max_position_embeddings"),
    ParallelConfig: ("use_distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather"),
    DataConfig: ("split", "drop_last"),
    ObjectiveConfig: (),
    ReferenceConfig: (),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file of the metrics; they are printed in any case")
    for group, omit in GROUPS.items():
        add_config_group(parser, group, omit=omit)
    return parser


def main() -> None:
    """Run the command."""
    arguments = build_parser().parse_args()
    model, parallel, data, objective, reference = (read_config_group(arguments, group) for group in GROUPS)
    config = RunConfig(model=model, parallel=parallel, data=data, objective=objective, reference=reference)
    if model.pretrained_checkpoint is None or not data.data_path:
        raise UserError("--pretrained-checkpoint and --data-path are needed: which model, on which pairs?")

    from megatron_longpo.training.score import score_dataset

    metrics = score_dataset(config)
    if os.environ.get("RANK", "0") != "0":
        return
    text = json.dumps(metrics, indent=2)
    print(text)
    if arguments.output:
        temporary = arguments.output.with_name(arguments.output.name + ".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, arguments.output)


if __name__ == "__main__":
    run_command(main)
