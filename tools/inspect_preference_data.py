r"""Show what a tokenised dataset holds, and what is wrong with it.

Without options: counts, drops, lengths, sharing. For example:

  python tools/inspect_preference_data.py data/pairs --verify --tokenizer-model models/SmolLM2-135M-Instruct
  python tools/inspect_preference_data.py data/pairs --show 0 --tokenizer-model models/SmolLM2-135M-Instruct | less -R
  python tools/inspect_preference_data.py data/pairs --dump 0 --output pair.json

--verify exits with 1 when it finds anything.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from megatron_longpo.utils.errors import UserError, run_command

if TYPE_CHECKING:
    from megatron_longpo.data.dataset import PreferenceDataset
    from megatron_longpo.data.tokenizer import ChatTokenizer


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("prefix", metavar="PREFIX", help="path of the dataset, without suffix")
    parser.add_argument("--verify", action="store_true", help="check hashes, indices, spans; with a tokenizer also the answers")
    parser.add_argument("--show", type=int, metavar="N", help="print pair N with its masks in colour")
    parser.add_argument("--dump", type=int, metavar="N", help="write pair N as JSON to --output")
    parser.add_argument("--output", metavar="FILE", help="where --dump writes")
    parser.add_argument("--tokenizer-model", metavar="PATH", help="Hugging Face folder or sentencepiece model, to decode with")
    parser.add_argument("--chat-template", metavar="FILE", help="the chat template that preprocessing was given, if any")
    parser.add_argument("--chat-template-arguments", metavar="JSON", default="{}", help="as given to preprocessing")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code from the tokenizer's folder")
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="colours of --show; never: brackets (default: auto)"
    )
    return parser.parse_args()


def main() -> int:
    """Run the command."""
    arguments = parse_arguments()
    if (arguments.dump is None) != (arguments.output is None):
        raise UserError("--dump N and --output FILE belong together")
    from megatron_longpo.data.dataset import PreferenceDataset
    from megatron_longpo.data.inspection import pair_as_json, write_json
    from megatron_longpo.data.report import render_pair, summary_lines

    dataset = PreferenceDataset(arguments.prefix)
    tokenizer = load_tokenizer(arguments)
    for number in (arguments.show, arguments.dump):
        if number is not None and not 0 <= number < len(dataset):
            raise UserError(f"{arguments.prefix}: there is no pair {number}; it has pairs 0 to {len(dataset) - 1}")
    if arguments.verify:
        return verify(dataset, tokenizer)
    if arguments.dump is not None:
        write_json(arguments.output, pair_as_json(dataset[arguments.dump]))
    elif arguments.show is not None:
        colour = arguments.color == "always" or (arguments.color == "auto" and sys.stdout.isatty())
        print("\n".join(render_pair(dataset[arguments.show], tokenizer, colour)))
    else:
        print("\n".join(summary_lines(dataset.manifest)))
    return 0


def load_tokenizer(arguments: argparse.Namespace) -> ChatTokenizer | None:
    """The tokenizer to decode with, if one is given."""
    from megatron_longpo.data.tokenizer import TokenizerSpec, read_template

    if not arguments.tokenizer_model:
        return None
    template = read_template(arguments.chat_template)
    return TokenizerSpec(
        arguments.tokenizer_model, template, arguments.chat_template_arguments, arguments.trust_remote_code
    ).load()


def verify(dataset: PreferenceDataset, tokenizer: ChatTokenizer | None) -> int:
    """Print every problem; 1 if there is one."""
    from megatron_longpo.data.inspection import find_problems

    count = 0
    for problem in find_problems(dataset, tokenizer):
        print(problem)
        count += 1
    print(f"{dataset.prefix}: {count or 'no'} problem{'' if count == 1 else 's'} in {len(dataset)} pairs")
    return 1 if count else 0


if __name__ == "__main__":
    run_command(main)
