"""Convert a native (Megatron-Core distributed) checkpoint to a Hugging Face folder.

Takes converted weights and training checkpoints of every parallel layout; reads the model's tensors only. The folder's
config.json has the RoPE base and max_position_embeddings that the training used. Under torchrun several processes share the
files:

    python checkpoint_conversion/mcore_to_hf.py --load runs/longpo --save exported/longpo
    python checkpoint_conversion/mcore_to_hf.py --load runs/longpo --iteration 100 --save exported/longpo-100 --dtype bfloat16

A run with LoRA (--lora-rank) gives a folder of adapters in PEFT's format, or with --merge a whole model:

    python checkpoint_conversion/mcore_to_hf.py --load runs/lora --save exported/lora-adapters
    python checkpoint_conversion/mcore_to_hf.py --load runs/lora --save exported/lora --merge
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from megatron_longpo.utils.errors import UserError, run_command

DTYPES = ("float32", "bfloat16", "float16")
_UNITS = {"": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3}


def byte_count(text: str) -> int:
    """Parse a size such as ``5GB`` or ``500MB``."""
    match = re.fullmatch(r"(\d+)(KB|MB|GB|)", text.upper())
    if not match or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB or 500MB")
    return int(match[1]) * _UNITS[match[2]]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--load", type=Path, required=True, metavar="DIR", help="checkpoint directory, or the folder of one iteration in it"
    )
    parser.add_argument("--iteration", type=int, help="which iteration; default: the latest")
    parser.add_argument("--save", type=Path, required=True, metavar="FOLDER", help="Hugging Face folder to make")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the exported weights; default: the one that the model came with"
    )
    parser.add_argument("--max-shard-size", type=byte_count, default="5GB", help="largest safetensors file; default: 5GB")
    parser.add_argument("--merge", action="store_true", help="add the adapters of a run with LoRA to their base: a whole model")
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="with --merge: where the base lies now; default: where training had it"
    )
    return parser


def main() -> None:
    """Run the command."""
    arguments = build_parser().parse_args()
    if arguments.base is not None and not arguments.merge:
        raise UserError(f"--base {arguments.base} has no effect without --merge")

    from megatron_longpo.conversion.export_hf import mcore_to_hf
    from megatron_longpo.conversion.workers import join_workers, say

    with join_workers() as workers:
        fingerprint = mcore_to_hf(
            arguments.load,
            arguments.save,
            iteration=arguments.iteration,
            dtype=arguments.dtype,
            max_shard_bytes=arguments.max_shard_size,
            workers=workers,
            merge=arguments.merge,
            base=arguments.base,
        )
        say(f"{arguments.save}: weights {fingerprint}", workers)


if __name__ == "__main__":
    run_command(main)
