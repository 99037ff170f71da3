"""The flags of tools/generate_preference_data.py, and the settings that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from megatron_longpo.generation.filters import FILTERS, FilterSettings
from megatron_longpo.generation.prompts import LEAD_INS, Prompts
from megatron_longpo.generation.settings import (
    MIN_DOCUMENT_TOKENS,
    PRESETS,
    CheckMode,
    GenerationSettings,
    Sampling,
    default_chunk_tokens,
)
from megatron_longpo.utils.errors import UserError

DEFAULT = GenerationSettings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag of generation to a parser."""
    _add_files(parser.add_argument_group("documents and output"))
    _add_cutting(parser.add_argument_group("lengths and chunks"))
    _add_sampling(parser.add_argument_group("questions and answers"))
    _add_checks(parser.add_argument_group("filters and checks"))
    _add_model(parser.add_argument_group("model"))
    _add_server(parser.add_argument_group("servers"))


def read_settings(arguments: argparse.Namespace) -> GenerationSettings:
    """Build the settings from parsed flags.

    Raises:
        UserError: a value cannot work, or a file cannot be read.
    """
    given, preset = arguments, PRESETS[arguments.preset]
    low, high = default_chunk_tokens(preset, given.seq_length)
    return GenerationSettings(
        seed=given.seed,
        num_turns=_or(given.num_turns, preset.num_turns),
        turn_order=_or(given.turn_order, preset.turn_order),
        seq_length=given.seq_length,
        min_document_tokens=_or(given.min_document_tokens, max(1, min(MIN_DOCUMENT_TOKENS, given.seq_length // 2))),
        max_document_tokens=given.max_document_tokens,
        min_chunk_tokens=_or(given.min_chunk_tokens, min(low, _or(given.max_chunk_tokens, low))),
        max_chunk_tokens=_or(given.max_chunk_tokens, max(high, _or(given.min_chunk_tokens, high))),
        num_questions=given.num_questions,
        max_question_tokens=given.max_question_tokens,
        question_sampling=Sampling(
            temperature=given.question_temperature, top_p=given.question_top_p, max_new_tokens=given.question_max_new_tokens
        ),
        answer_sampling=Sampling(
            temperature=_or(given.temperature, preset.temperature), top_p=given.top_p, max_new_tokens=given.max_new_tokens
        ),
        lead_ins=_read_lead_ins(given.lead_in_file) if given.lead_in_file else LEAD_INS,
        prompts=Prompts.load(given.template_dir) if given.template_dir else Prompts(),
        filters=FilterSettings(
            enabled=frozenset(FILTERS) - frozenset(given.skip_filter),
            min_words=given.min_answer_words,
            max_repetition_chosen=given.max_repetition_chosen,
            max_repetition_rejected=given.max_repetition_rejected,
            max_answer_tokens=given.max_answer_tokens,
        ),
        verify=given.verify,
        logprob_margin=given.logprob_margin,
        min_logprob_margin=given.min_logprob_margin,
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _add_files(group: argparse._ArgumentGroup) -> None:
    source = "JSON Lines (also .gz, .zst), Parquet, a folder of these or of text files, or hf:NAME[:CONFIG]"
    group.add_argument("--input", required=True, metavar="PATH", help=f"documents: {source}")
    group.add_argument(
        "--output", type=Path, required=True, help="pairs, JSON Lines; work in hand, drops and report lie beside it"
    )
    group.add_argument("--text-column", default="text", metavar="NAME", help="field of the text (default: %(default)s)")
    group.add_argument("--id-column", metavar="NAME", help="field of the id (default: document_id or id, else file and number)")
    domains = ("text", "arxiv", "code", "markdown", "auto")
    group.add_argument(
        "--domain", choices=domains, default="text", help="how documents are cut; auto goes by a file's ending (default: text)"
    )
    group.add_argument("--domain-column", metavar="NAME", help="field that tells each document's domain")
    group.add_argument(
        "--question-column",
        metavar="NAME",
        help="field with the questions: a list of {question, start, end}, offsets in characters",
    )
    group.add_argument(
        "--question-generator",
        metavar="FILE.py:FUNCTION",
        help="a function of yours, f(chunk, number, seed) -> questions, in place of the model",
    )
    group.add_argument("--input-split", default="train", metavar="NAME", help="split of an hf: source (default: %(default)s)")
    group.add_argument("--max-documents", type=int, metavar="N", help="take the first N documents only")
    group.add_argument(
        "--shard", metavar="I/N", default="0/1", help="work on every N-th document, from I on: for N jobs side by side"
    )
    group.add_argument(
        "--merge", type=int, metavar="N", help="join the outputs of N finished shards to OUTPUT; no model is needed"
    )
    group.add_argument(
        "--dry-run", action="store_true", help="count documents, chunks and tokens, show the prompts of one document"
    )
    group.add_argument(
        "--dataset-prefix",
        metavar="PREFIX",
        help="also tokenise the pairs to an indexed dataset, as preprocess_preference_data.py",
    )
    group.add_argument("--overwrite", action="store_true", help="replace another dataset at --dataset-prefix")


def _add_cutting(group: argparse._ArgumentGroup) -> None:
    _number(group, "--seq-length", DEFAULT.seq_length, "most tokens of one side of a pair")
    shorter = "drop shorter documents (default: 65536, or half of --seq-length where that is less)"
    _number(group, "--min-document-tokens", None, shorter, kind=int)
    longer = "drop longer documents; what is longer than fits is cut to a part that does (default: --seq-length)"
    _number(group, "--max-document-tokens", None, longer, kind=int)
    chunk = "tokens of a chunk; default: the preset's, at most a quarter of --seq-length"
    _number(group, "--min-chunk-tokens", None, f"fewest {chunk}", kind=int)
    _number(group, "--max-chunk-tokens", None, f"most {chunk}", kind=int)
    _number(group, "--seed", DEFAULT.seed, "seed of every choice")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default="paper",
        help="paper: up to 4 turns, greedy (default); release: 2 turns in any order, temperature 1, chunks of 16384 to 30000",
    )
    _number(group, "--num-turns", None, "most turns of a document, each of a chunk of its own; default: the preset's", kind=int)
    group.add_argument("--turn-order", choices=("document", "shuffled"), help="order of a record's turns; default: the preset's")
    _number(group, "--temperature", None, "temperature of the answers, 0 for greedy; default: the preset's", kind=float)
    _number(group, "--top-p", DEFAULT.answer_sampling.top_p, "nucleus of the answers")
    _number(group, "--max-new-tokens", DEFAULT.answer_sampling.max_new_tokens, "longest answer, in tokens")
    _number(group, "--num-questions", DEFAULT.num_questions, "questions asked for about a chunk; one of them is used")
    _number(group, "--max-question-tokens", DEFAULT.max_question_tokens, "longest question that is used")
    _number(group, "--question-temperature", DEFAULT.question_sampling.temperature, "temperature of the questions")
    _number(group, "--question-top-p", DEFAULT.question_sampling.top_p, "nucleus of the questions")
    _number(group, "--question-max-new-tokens", DEFAULT.question_sampling.max_new_tokens, "longest list of questions, in tokens")
    group.add_argument("--lead-in-file", type=Path, help="phrases that lead to a question, one a line; default: built-in ones")
    group.add_argument(
        "--template-dir", type=Path, metavar="DIR", help="Jinja2 templates of your own: questions.j2, instruction.j2, judge_*.j2"
    )


def _add_checks(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--skip-filter",
        nargs="+",
        choices=FILTERS,
        default=(),
        metavar="NAME",
        help=f"filters not to use, of {', '.join(FILTERS)}",
    )
    default = DEFAULT.filters
    _number(group, "--min-answer-words", default.min_words, "fewer words are too short")
    _number(group, "--max-repetition-chosen", default.max_repetition_chosen, "most repetition in a chosen answer, 0 to 1")
    _number(group, "--max-repetition-rejected", default.max_repetition_rejected, "the same of a rejected one")
    _number(group, "--max-answer-tokens", None, "more tokens are over-long, as is what --max-new-tokens cuts off", kind=int)
    modes = get_args(CheckMode)
    verify = "let the model, reading the chunk, judge whether chosen answers and beats rejected; filter drops what fails"
    group.add_argument("--verify", choices=modes, default="off", help=f"{verify} (default: off)")
    margin = "log p(chosen) - log p(rejected) given the chunk; filter drops turns below --min-logprob-margin"
    group.add_argument("--logprob-margin", choices=modes, default="off", help=f"{margin} (default: off)")
    _number(group, "--min-logprob-margin", DEFAULT.min_logprob_margin, "in nats")


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model", type=Path, help="Hugging Face folder: a model to run in this process, tokenizer with chat template"
    )
    group.add_argument(
        "--tokenizer-model", type=Path, metavar="PATH", help="Hugging Face folder of the tokenizer alone; needed with --server"
    )
    group.add_argument(
        "--engine", choices=("transformers", "vllm"), default="transformers", help="what runs --model (default: transformers)"
    )
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    group.add_argument("--dtype", choices=dtypes, default="auto", help="precision of the weights (default: the checkpoint's)")
    base = "RoPE base while answering from the whole document; recorded only, where servers answer; default: the model's"
    _number(group, "--rotary-base", None, base, kind=float)
    limit = "most positions of prompt and answer together; what is longer is dropped; default: what the configuration says"
    _number(group, "--context-length", None, limit, kind=int)
    _number(
        group, "--documents-per-group", 8, "in the process: documents that are worked on together, their short prompts in batches"
    )
    _number(
        group, "--max-batch-tokens", 16384, "in the process: positions that are decoded together; lower it if memory runs out"
    )


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--server", nargs="+", metavar="URL", help="OpenAI-compatible servers (http://host:port/v1), replicas of one model"
    )
    group.add_argument(
        "--long-server",
        nargs="+",
        metavar="URL",
        help="servers for whole documents, such as with a raised RoPE base (default: --server)",
    )
    group.add_argument("--served-model", metavar="NAME", help="the model's name there (default: the only one that they serve)")
    _number(group, "--concurrency", 16, "requests under way at one server")
    _number(group, "--request-timeout", 600.0, "seconds that one request may take")
    _number(group, "--max-retries", 8, "tries of a request after the first, with growing pauses")
    group.add_argument("--request-extra", metavar="JSON", default="{}", help="further fields of every request")
    group.add_argument(
        "--api-key-variable",
        metavar="NAME",
        default="OPENAI_API_KEY",
        help="environment variable of the key (default: %(default)s)",
    )
    group.add_argument(
        "--allow-failed", action="store_true", help="write the output without the turns whose requests got no answer at last"
    )


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
