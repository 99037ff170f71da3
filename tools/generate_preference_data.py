"""Make LongPO preference pairs from long documents, with the model that will be trained.

Each document is cut into chunks. The model writes questions about some of them, and one question a chunk is kept. Its answer from
the chunk alone is the chosen one, its answer from the whole document the rejected one. Nobody labels anything. The output has
one JSON object a line; docs/data-generation.md tells the method, docs/data-format.md the fields.

In this process:

  python tools/generate_preference_data.py --input books/ --output pairs.jsonl --model models/Mistral-7B-Instruct-v0.2 \
      --seq-length 131072 --context-length 131072 --rotary-base 1e7

By servers (vLLM, SGLang, llama.cpp, Ollama), straight to a tokenised dataset:

  python tools/generate_preference_data.py --input books/ --output pairs.jsonl --tokenizer-model models/Mistral-7B-Instruct-v0.2 \
      --server http://node1:8000/v1 http://node2:8000/v1 --seq-length 131072 --verify filter --dataset-prefix data/pairs
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from megatron_longpo.generation.options import add_arguments, read_settings
from megatron_longpo.utils.errors import UserError, run_command


def make_job(arguments: argparse.Namespace):  # type: ignore[no-untyped-def]
    """Put together what is read and written."""
    from megatron_longpo.generation.documents import DocumentSource
    from megatron_longpo.generation.run import Job
    from megatron_longpo.generation.shards import Shard

    source = DocumentSource(
        path=arguments.input,
        text_column=arguments.text_column,
        id_column=arguments.id_column,
        domain=arguments.domain,
        domain_column=arguments.domain_column,
        question_column=arguments.question_column,
        split=arguments.input_split,
    )
    return Job(
        source=source,
        output=arguments.output,
        max_documents=arguments.max_documents,
        shard=Shard.parse(arguments.shard),
        allow_failed=arguments.allow_failed,
    )


def preprocess_pairs(arguments: argparse.Namespace) -> None:
    """Tokenise the finished pairs."""
    from megatron_longpo.data.preprocess import PreprocessOptions, preprocess
    from megatron_longpo.data.report import summary_lines
    from megatron_longpo.data.tokenizer import TokenizerSpec

    tokenizer = TokenizerSpec(str(arguments.tokenizer_model or arguments.model))
    workers = len(os.sched_getaffinity(0))
    options = PreprocessOptions(
        inputs=(str(arguments.output),),
        output_prefix=arguments.dataset_prefix,
        tokenizer=tokenizer,
        seq_length=arguments.seq_length,
        workers=workers,
        overwrite=arguments.overwrite,
    )
    manifest, _ = preprocess(options)
    print("\n".join([f"{arguments.dataset_prefix}:", *summary_lines(manifest)]))


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse flags that cannot work together.

    Raises:
        UserError: so.
    """
    for name in ("merge", "max_documents"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if arguments.shard != "0/1" and (arguments.merge or arguments.dataset_prefix):
        raise UserError("--shard works on a part; give --merge and --dataset-prefix to a run of their own, without it")
    if arguments.dataset_prefix and not (arguments.tokenizer_model or arguments.model):
        raise UserError("--dataset-prefix needs --tokenizer-model, also with --merge")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="An interrupted run goes on where it stopped when the same command is given again.",
    )
    add_arguments(parser)
    return parser


def main() -> None:
    """Parse, load or reach the model, generate, tell what came out."""
    arguments = build_parser().parse_args()
    settings = read_settings(arguments)
    check_arguments(arguments)

    from megatron_longpo.generation.dry_run import Silent, dry_run
    from megatron_longpo.generation.engines import build_generator, load_question_maker, load_tokenizer
    from megatron_longpo.generation.pipeline import Generator
    from megatron_longpo.generation.run import beside, generate, merge

    job = make_job(arguments)
    if arguments.dry_run:
        positions = max(settings.seq_length, arguments.context_length or 0)
        questions = load_question_maker(arguments.question_generator)
        silent: Any = Silent()
        generator = Generator(silent, silent, load_tokenizer(arguments), positions, settings, *questions)
        for line in dry_run(job, generator):
            print(line)
        return
    if arguments.merge:
        summary = merge(job, arguments.merge)
    else:
        summary = generate(job, build_generator(arguments, settings, load_tokenizer(arguments)))
    output = job.share_of_output
    print(f"{output}: {summary.records} records with {summary.turns} turns, from {summary.documents} documents")
    if summary.parts:
        print(f"  {summary.parts} hold a part of their document: the whole and its turns are more than --seq-length")
    for reason, number in sorted(summary.drops.items()):
        print(f"  dropped {number} x {reason}")
    print(f"report: {beside(output, 'report.html')}")
    if not summary.records:
        raise UserError(f"no document of {arguments.input} gave a pair; the reasons are above")
    if arguments.dataset_prefix:
        preprocess_pairs(arguments)


if __name__ == "__main__":
    run_command(main)
