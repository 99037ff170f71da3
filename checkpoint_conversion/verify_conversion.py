"""Show that a native checkpoint and a Hugging Face folder hold the same model: run one text through both and compare.

Both run in fp32 on this machine, one after the other. Exits with 1 when they differ by more than the tolerances.

    python checkpoint_conversion/verify_conversion.py --hf models/Qwen2.5-7B-Instruct --checkpoint checkpoints/qwen
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from megatron_longpo.utils.errors import UserError, run_command


def read_text(path: Path) -> str:
    """Read the text that both models get."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--hf", type=Path, required=True, metavar="FOLDER", help="Hugging Face folder, with its tokenizer")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="native checkpoint directory")
    parser.add_argument("--text", type=Path, metavar="FILE", help="text that both read; default: a page of mixed text")
    parser.add_argument("--max-tokens", type=int, default=512, help="cut the text to this many tokens; default: 512")
    parser.add_argument("--max-logit-difference", type=float, default=1e-2, help="largest difference of a logit; default: 0.01")
    parser.add_argument("--max-kl", type=float, default=1e-6, help="largest mean KL divergence, in nats; default: 1e-6")
    parser.add_argument(
        "--min-greedy-agreement", type=float, default=0.99,
        help="smallest share of positions with the same most likely token; default: 0.99",
    )  # fmt: skip
    arguments = parser.parse_args()

    from megatron_longpo.conversion.verify import DEFAULT_TEXT, Tolerances, verify_conversion

    text = read_text(arguments.text) if arguments.text else DEFAULT_TEXT
    found = verify_conversion(arguments.hf, arguments.checkpoint, text, arguments.max_tokens)
    for name, value in dataclasses.asdict(found).items():
        print(f"{name:<24} {value:.6g}")
    wrong = Tolerances(
        max_logit_difference=arguments.max_logit_difference,
        kl=arguments.max_kl,
        greedy_agreement=arguments.min_greedy_agreement,
    ).violations(found)
    print(f"they differ: {'; '.join(wrong)}" if wrong else "they agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_command(main)
