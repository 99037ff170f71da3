"""Make LongPO preference pairs from long documents, with the model that will be trained.

Each document is cut into chunks of whole paragraphs. The model writes questions about some of them, and one question a chunk is
kept. Its answer from the chunk alone is the chosen one, its answer from the whole document the rejected one. Nobody labels
anything. The output has one JSON object a line; docs/data-generation.md tells the method, docs/data-format.md the fields.
"""

from __future__ import annotations

import argparse

from megatron_longpo.generation.options import add_arguments, read_settings
from megatron_longpo.utils.errors import UserError, run_command


def main() -> None:
    """Parse, load the model, generate, tell what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="An interrupted run goes on where it stopped when the same command is given again.",
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    settings = read_settings(arguments)

    from megatron_longpo.generation.engine import ChatTokenizer
    from megatron_longpo.generation.pipeline import Generator
    from megatron_longpo.generation.run import generate
    from megatron_longpo.generation.transformers_engine import TransformersEngine
    from megatron_longpo.parallel.cpu_backend import device

    tokenizer = ChatTokenizer.load(arguments.model)
    engine = TransformersEngine.load(
        arguments.model, tokenizer, dtype=arguments.dtype, device=device(), max_batch_tokens=arguments.max_batch_tokens
    )
    generator = Generator(
        short=engine,
        long=engine if arguments.rotary_base is None else engine.with_rotary_base(arguments.rotary_base),
        tokenizer=tokenizer,
        context_length=arguments.context_length or engine.context_length,
        settings=settings,
    )
    summary = generate(
        arguments.input,
        arguments.output,
        generator,
        group_size=arguments.documents_per_group,
        max_documents=arguments.max_documents,
    )
    print(f"{arguments.output}: {summary.records} records with {summary.turns} turns, from {summary.documents} documents")
    print(f"  answers cut off by --max-new-tokens: {summary.cut_off}")
    for reason, number in sorted(summary.drops.items()):
        print(f"  dropped {number} x {reason}")
    if not summary.records:
        raise UserError(f"no document of {arguments.input} gave a pair; the reasons are above")


if __name__ == "__main__":
    run_command(main)
