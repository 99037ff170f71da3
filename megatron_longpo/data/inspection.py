"""Integrity check of a dataset, and its pairs as JSON."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.layout import check_pair, shared_prefix_length
from megatron_longpo.data.manifest import data_hash
from megatron_longpo.data.pair import PreferencePair, Side
from megatron_longpo.data.tokenizer import ChatTokenizer
from megatron_longpo.utils.errors import UserError


def find_problems(dataset: PreferenceDataset, tokenizer: ChatTokenizer | None) -> Iterator[str]:
    """Everything that is wrong with a dataset, in words; it goes through all pairs.

    Args:
        dataset: to check: hashes of the files, counts and ids of the manifest, spans and lengths of each pair.
        tokenizer: also check that it is the one that made the data, that answers decode to whole text and end in a control
            token.
    """
    manifest = dataset.manifest
    yield from dataset.verify_hashes()
    if data_hash(manifest.files) != manifest.data_hash:
        yield "manifest: data_hash is not that of the files' hashes"
    if manifest.num_records != manifest.num_pairs + sum(manifest.drops.values()):
        yield f"manifest: {manifest.num_records} records are not {manifest.num_pairs} pairs plus the drops"
    if tokenizer is not None:
        yield from _compare_tokenizer(dataset, tokenizer)
    turns, ids = [0], set()
    for index in range(len(dataset)):
        try:
            pair = dataset[index]
        except UserError as error:
            yield str(error)
            continue
        where = f"pair {index} ({pair.document_id!r})"
        if pair.document_id in ids:
            yield f"{where}: its document id occurs twice"
        ids.add(pair.document_id)
        turns.append(pair.num_turns)
        problems = [*check_pair(pair), *_check_against_manifest(dataset, index, pair)]
        if tokenizer is not None and not problems:
            problems = list(_check_answers(pair, tokenizer))
        yield from (f"{where}: {problem}" for problem in problems)
    if (sum(turns), max(turns)) != (manifest.num_turns, manifest.max_turns):
        recorded = f"{manifest.num_turns} turns, at most {manifest.max_turns}"
        yield f"manifest: {recorded} in a pair; the pairs have {sum(turns)}, at most {max(turns)}"


def _compare_tokenizer(dataset: PreferenceDataset, tokenizer: ChatTokenizer) -> Iterator[str]:
    recorded = dataset.manifest.tokenizer
    for name in ("fingerprint", "template_fingerprint"):
        expected = getattr(recorded, name)
        if expected is not None and expected != getattr(tokenizer, name):
            yield f"tokenizer: its {name} is not the one that made the data"


def _check_against_manifest(dataset: PreferenceDataset, index: int, pair: PreferencePair) -> Iterator[str]:
    manifest = dataset.manifest
    long_sides = (pair.chosen, pair.rejected)
    short_sides = (*pair.short_chosen, *pair.short_rejected)
    lengths = tuple(len(side.input_ids) for side in long_sides)
    if max(lengths) > manifest.seq_length:
        yield f"a long side has {max(lengths)} tokens, the limit was {manifest.seq_length}"
    if manifest.short_seq_length is not None and max(len(side.input_ids) for side in short_sides) > manifest.short_seq_length:
        yield f"a short side is longer than the limit of {manifest.short_seq_length} tokens"
    if max(int(side.input_ids.max()) for side in (*long_sides, *short_sides)) > manifest.max_token_id:
        yield f"holds an id above the manifest's max_token_id {manifest.max_token_id}"
    if dataset.shared_prefix_length(index) != shared_prefix_length(pair.chosen.input_ids, pair.rejected.input_ids):
        yield f"the stored shared prefix of {dataset.shared_prefix_length(index)} tokens is not the longest one"


def _check_answers(pair: PreferencePair, tokenizer: ChatTokenizer) -> Iterator[str]:
    """Answers must end in a control token, and be the same text on the long and the short side."""
    for name, long_side, short_sides in (
        ("chosen", pair.chosen, pair.short_chosen),
        ("rejected", pair.rejected, pair.short_rejected),
    ):
        for turn, span in enumerate(long_side.answer_spans):
            long_text = _answer_text(long_side, span, tokenizer)
            short_text = _answer_text(short_sides[turn], short_sides[turn].answer_spans[0], tokenizer)
            if long_text is None or short_text is None:
                yield f"{name} answer {turn} does not end in a control token"
            elif not long_text or long_text != short_text:
                yield f"{name} answer {turn} is {long_text!r} on the long side and {short_text!r} on the short side"


def _answer_text(side: Side, span: tuple[int, int], tokenizer: ChatTokenizer) -> str | None:
    """An answer's text, or None when no control token ends it; imported labels may have white space after that token."""
    start, end = span
    while end > start and not tokenizer.decode(side.input_ids[end - 1 : end]).strip():
        end -= 1
    if side.input_ids[end - 1] not in tokenizer.control_ids:
        return None
    return unicodedata.normalize("NFC", tokenizer.decode(side.input_ids[start : end - 1]).strip())


def pair_as_json(pair: PreferencePair) -> dict[str, Any]:
    """A pair in plain lists and numbers."""
    return {
        "document_id": pair.document_id,
        "chosen": _long_as_json(pair.chosen),
        "rejected": _long_as_json(pair.rejected),
        "content_spans": [list(span) for span in pair.content_spans],
        "reference": [
            {"chosen": _short_as_json(chosen), "rejected": _short_as_json(rejected)}
            for chosen, rejected in zip(pair.short_chosen, pair.short_rejected, strict=True)
        ],
    }


def _long_as_json(side: Side) -> dict[str, Any]:
    return {"input_ids": side.input_ids.tolist(), "answer_spans": [list(span) for span in side.answer_spans]}


def _short_as_json(side: Side) -> dict[str, Any]:
    return {"input_ids": side.input_ids.tolist(), "answer_span": list(side.answer_spans[0])}


def write_json(path: str, value: object) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    temporary = Path(f"{path}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(value, stream, ensure_ascii=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror})") from None
