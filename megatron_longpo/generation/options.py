"""The flags of tools/generate_preference_data.py, and the settings that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_longpo.generation.prompts import LEAD_INS
from megatron_longpo.generation.settings import PRESETS, GenerationSettings, Sampling
from megatron_longpo.utils.errors import UserError

DEFAULT = GenerationSettings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag of generation to a parser."""
    _add_files(parser.add_argument_group("files"))
    _add_cutting(parser.add_argument_group("chunks and sequences"))
    _add_sampling(parser.add_argument_group("questions and answers"))
    _add_engine(parser.add_argument_group("model"))


def read_settings(arguments: argparse.Namespace) -> GenerationSettings:
    """Build the settings from parsed flags.

    Raises:
        UserError: a value cannot work, or the file of lead-in phrases cannot be read.
    """
    num_turns, temperature = PRESETS[arguments.preset]
    return GenerationSettings(
        seed=arguments.seed,
        num_turns=num_turns if arguments.num_turns is None else arguments.num_turns,
        seq_length=arguments.seq_length,
        min_chunk_tokens=arguments.min_chunk_tokens,
        max_chunk_tokens=arguments.max_chunk_tokens,
        num_questions=arguments.num_questions,
        max_question_tokens=arguments.max_question_tokens,
        question_sampling=Sampling(
            temperature=arguments.question_temperature,
            top_p=arguments.question_top_p,
            max_new_tokens=arguments.question_max_new_tokens,
        ),
        answer_sampling=Sampling(
            temperature=temperature if arguments.temperature is None else arguments.temperature,
            top_p=arguments.top_p,
            max_new_tokens=arguments.max_new_tokens,
        ),
        drop_cut_off=arguments.drop_cut_off,
        lead_ins=_read_lead_ins(arguments.lead_in_file) if arguments.lead_in_file else LEAD_INS,
    )


def _add_files(group: argparse._ArgumentGroup) -> None:
    documents = "JSON Lines of document_id, text and (optional) metadata; or a folder of .txt files"
    group.add_argument("--input", type=Path, required=True, help=f"documents: {documents}")
    group.add_argument("--output", type=Path, required=True, help="pairs, JSON Lines; the work in hand is kept in OUTPUT.journal")
    group.add_argument("--max-documents", type=int, metavar="N", help="take the first N documents only")


def _add_cutting(group: argparse._ArgumentGroup) -> None:
    _number(group, "--seq-length", DEFAULT.seq_length, "most tokens of one side of a pair; a longer document is cut to fit")
    _number(group, "--min-chunk-tokens", DEFAULT.min_chunk_tokens, "fewest tokens of a chunk")
    _number(group, "--max-chunk-tokens", DEFAULT.max_chunk_tokens, "most tokens of a chunk")
    _number(group, "--seed", DEFAULT.seed, "seed of every choice")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="paper",
        help="paper: up to 4 turns, greedy (default); release: 2, temperature 1",
    )
    _number(group, "--num-turns", None, "most turns of a document, each of a chunk of its own; default: the preset's", kind=int)
    _number(group, "--temperature", None, "temperature of the answers, 0 for greedy; default: the preset's", kind=float)
    _number(group, "--top-p", DEFAULT.answer_sampling.top_p, "nucleus of the answers")
    _number(group, "--max-new-tokens", DEFAULT.answer_sampling.max_new_tokens, "longest answer, in tokens")
    _number(group, "--num-questions", DEFAULT.num_questions, "questions asked for about a chunk; one of them is used")
    _number(group, "--max-question-tokens", DEFAULT.max_question_tokens, "longest question that is used")
    _number(group, "--question-temperature", DEFAULT.question_sampling.temperature, "temperature of the questions")
    _number(group, "--question-top-p", DEFAULT.question_sampling.top_p, "nucleus of the questions")
    _number(group, "--question-max-new-tokens", DEFAULT.question_sampling.max_new_tokens, "longest list of questions, in tokens")
    cut_off = "drop turns with an answer cut off by --max-new-tokens and let other chunks take their place"
    group.add_argument("--drop-cut-off", action="store_true", help=cut_off)
    group.add_argument("--lead-in-file", type=Path, help="phrases that lead to a question, one a line; default: built-in ones")


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", type=Path, required=True, help="Hugging Face folder: safetensors, tokenizer with chat template")
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    group.add_argument("--dtype", choices=dtypes, default="auto", help="precision of the weights (default: the checkpoint's)")
    _number(group, "--rotary-base", None, "RoPE base while answering from the whole document; default: the model's", kind=float)
    limit = "most positions of prompt and answer together; what is longer is dropped; default: what the configuration says"
    _number(group, "--context-length", None, limit, kind=int)
    _number(group, "--documents-per-group", 8, "documents that are worked on together, their short prompts in shared batches")
    _number(group, "--max-batch-tokens", 16384, "positions that are decoded together; lower it if memory runs out")


def _number(group: argparse._ArgumentGroup, flag: str, default: Any, text: str, *, kind: type | None = None) -> None:
    shown = "" if default is None else " (default: %(default)s)"
    kind = kind or type(default)
    group.add_argument(flag, type=kind, default=default, metavar="N" if kind is int else "X", help=text + shown)


def _read_lead_ins(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--lead-in-file {path}: cannot be read as UTF-8 text ({error})") from None
    return tuple(line.strip() for line in lines if line.strip())
