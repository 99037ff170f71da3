r"""Turn preference pairs (JSON Lines) into a tokenised dataset: PREFIX.bin, PREFIX.idx and the manifest PREFIX.json.

One line of the input is one document:

  {"document_id": "...", "long_context": "...", "metadata": {},
   "turns": [{"short_context": "...", "instruction": "...", "chosen": "...", "rejected": "..."}]}

For example:

  python tools/preprocess_preference_data.py --input pairs.jsonl --output-prefix data/pairs \
      --tokenizer-model models/SmolLM2-135M-Instruct --seq-length 8192 --workers 8

Several sources, a thousand records of one of them, and a part kept for validation (PREFIX-train.*, PREFIX-validation.*):

  python tools/preprocess_preference_data.py --input books.jsonl 'code.jsonl#1000' --split 98,2 --output-prefix data/mixed \
      --tokenizer-model models/SmolLM2-135M-Instruct --seq-length 8192 --on-bad-record skip

Records that cannot be used are dropped whole and counted by reason; nothing is ever cut. A document that occurs again is dropped
too. An interrupted run goes on when the command is repeated, and a finished one is left as it is. docs/data-format.md describes
both formats.
"""

from __future__ import annotations

import argparse
import os

from megatron_longpo.utils.errors import UserError, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH[#N]",
        help="JSON Lines files, with #N behind a path to take N of its records, chosen by seed; or tokenised LongPO data",
    )
    parser.add_argument(
        "--input-format",
        choices=("jsonl", "longpo-tokenized"),
        default="jsonl",
        help="longpo-tokenized: the published tokenised LongPO data sets, as parquet files, folders of them, or "
        "folders written by datasets' save_to_disk; their spans are those of their labels (default: jsonl)",
    )
    parser.add_argument("--output-prefix", required=True, metavar="PREFIX", help="path of the dataset, without suffix")
    parser.add_argument(
        "--tokenizer-model",
        metavar="PATH",
        help="Hugging Face folder, or a bare sentencepiece model; optional for longpo-tokenized, where it is recorded",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="Jinja2 chat template; needed with a sentencepiece model (default: the tokenizer's own)",
    )
    parser.add_argument(
        "--chat-template-arguments",
        metavar="JSON",
        default="{}",
        help="further variables for the template, for example '{\"enable_thinking\": false}'",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code from the tokenizer's folder")
    parser.add_argument("--seq-length", type=int, required=True, help="drop pairs with a long side of more tokens")
    parser.add_argument("--short-seq-length", type=int, help="drop pairs with a short side of more tokens (default: no limit)")
    parser.add_argument(
        "--split",
        metavar="SHARES",
        help="shares of train and validation, and of test if there is a third, such as 98,2: makes PREFIX-train and so on, "
        "dividing documents by seed (default: one dataset, PREFIX)",
    )
    parser.add_argument("--seed", type=int, default=42, help="of --split and of PATH#N (default: 42)")
    parser.add_argument(
        "--no-deduplicate",
        dest="deduplicate",
        action="store_false",
        help="keep records whose document an earlier record has; they stay together when documents are split",
    )
    parser.add_argument(
        "--on-bad-record",
        choices=("fail", "skip"),
        default="fail",
        help="what a line that is no record does: end the run before any work is done, or be left out, counted, and listed in "
        "PREFIX.bad.jsonl (default: fail)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        help="processes; the result does not depend on it (default: all cores)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another dataset at the prefix")
    return parser


def main() -> None:
    """Run the command."""
    arguments = build_parser().parse_args()
    for name in ("seq_length", "short_seq_length", "workers"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a number of at least 1")
    from megatron_longpo.data.preprocess import PreprocessOptions, preprocess_all
    from megatron_longpo.data.report import summary_lines
    from megatron_longpo.data.tokenizer import TokenizerSpec, read_template

    tokenizer = None
    if arguments.tokenizer_model:
        template = read_template(arguments.chat_template)
        tokenizer = TokenizerSpec(
            arguments.tokenizer_model, template, arguments.chat_template_arguments, arguments.trust_remote_code
        )
    manifests, worked = preprocess_all(
        PreprocessOptions(
            inputs=tuple(arguments.input),
            output_prefix=arguments.output_prefix,
            tokenizer=tokenizer,
            seq_length=arguments.seq_length,
            short_seq_length=arguments.short_seq_length,
            input_format=arguments.input_format,
            split=arguments.split,
            seed=arguments.seed,
            deduplicate=arguments.deduplicate,
            on_bad_record=arguments.on_bad_record,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
        )
    )
    for prefix, manifest in manifests.items():
        print(f"{prefix}: " + ("written" if worked else "is there already, made from the same inputs; nothing to do"))
        print("\n".join(summary_lines(manifest)))


if __name__ == "__main__":
    run_command(main)
