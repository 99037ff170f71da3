"""Convert a Hugging Face model to a native (Megatron-Core distributed) checkpoint.

The checkpoint loads in every tensor-, pipeline-, context- and data-parallel layout. Works one tensor at a time; under torchrun
several processes share the work:

    python checkpoint_conversion/hf_to_mcore.py --hf models/Qwen2.5-7B-Instruct --save checkpoints/qwen
    torchrun --nproc-per-node 4 checkpoint_conversion/hf_to_mcore.py --hf models/Qwen2.5-7B-Instruct --save checkpoints/qwen
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_longpo.utils.errors import run_command


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--hf", type=Path, required=True, metavar="FOLDER", help="Hugging Face folder: config.json and safetensors"
    )
    parser.add_argument(
        "--save", type=Path, required=True, metavar="DIR",
        help="checkpoint directory to make; if it was made from the same weights before, nothing is done",
    )  # fmt: skip
    return parser


def main() -> None:
    """Run the command."""
    arguments = build_parser().parse_args()

    from megatron_longpo.conversion.import_hf import hf_to_mcore
    from megatron_longpo.conversion.workers import join_workers, say

    with join_workers() as workers:
        record = hf_to_mcore(arguments.hf, arguments.save, workers)
        say(f"{arguments.save}: weights {record.weights_sha256}", workers)


if __name__ == "__main__":
    run_command(main)
