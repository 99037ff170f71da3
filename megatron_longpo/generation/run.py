"""All documents to one file of records, going on where an earlier run stopped."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

from megatron_longpo.generation import prompts
from megatron_longpo.generation.documents import Document, read_documents
from megatron_longpo.generation.journal import Journal
from megatron_longpo.generation.pipeline import Generator


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run made.

    Attributes:
        documents: documents read.
        resumed: of these, those that an earlier run had done.
        records: lines of the output.
        turns: turns in them.
        cut_off: answers that the token limit ended; preprocessing drops their turns.
        drops: how often something was dropped, by reason.
    """

    documents: int
    resumed: int
    records: int
    turns: int
    cut_off: int
    drops: dict[str, int]


def journal_path(output: Path) -> Path:
    """Return where the journal of an output lies."""
    return output.with_name(output.name + ".journal")


def generate(
    source: Path, output: Path, generator: Generator, *, group_size: int = 8, max_documents: int | None = None
) -> Summary:
    """Make the records of all documents and write them, in the documents' order.

    Documents are worked on in groups of ``group_size``, whose short prompts share batches. Every finished document is kept in a
    journal beside the output, under a key of its text, the settings and the model, so that a re-run does only what is missing.
    The output appears when it is complete.

    Raises:
        UserError: the documents cannot be read, or the settings cannot work with this model.
    """
    from tqdm import tqdm

    generator.document_budget()
    fingerprint = _fingerprint(generator)
    keys = [_key(fingerprint, document) for document in _take(source, max_documents)]
    with Journal(journal_path(output)) as journal:
        resumed = sum(key in journal for key in keys)
        work = zip(keys, _take(source, max_documents), strict=True)
        with tqdm(total=len(keys), initial=resumed, unit="document", desc="generate", disable=None) as progress:
            while group := list(itertools.islice(work, group_size)):
                if all(key in journal for key, _ in group):
                    continue
                # A group is made as a whole even if parts of it are done: no batch depends on where a run was interrupted.
                outcomes = generator.make_records([document for _, document in group])
                for (key, _), outcome in zip(group, outcomes, strict=True):
                    if key not in journal:
                        journal.append(key, dataclasses.asdict(outcome))
                        progress.update()
        return _write_output(output, keys, journal, resumed)


def _take(source: Path, max_documents: int | None) -> Iterator[Document]:
    return itertools.islice(read_documents(source), max_documents)


def _fingerprint(generator: Generator) -> str:
    """Hash everything but the document that a record depends on."""
    wording = {"question": prompts.QUESTION_INSTRUCTION, "lead_ins": generator.settings.lead_ins}
    return hashlib.sha256(json.dumps([generator.describe(), wording], sort_keys=True).encode()).hexdigest()


def _key(fingerprint: str, document: Document) -> str:
    content = json.dumps([fingerprint, document.document_id, document.text, document.metadata], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _write_output(output: Path, keys: list[str], journal: Journal, resumed: int) -> Summary:
    drops: collections.Counter[str] = collections.Counter()
    records = turns = cut_off = 0
    partial = output.with_name(output.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for key in keys:
            outcome = journal.read(key)
            drops.update(outcome["drops"])
            if outcome["record"] is None:
                continue
            records += 1
            for turn in outcome["record"]["metadata"]["turns"]:
                turns += 1
                cut_off += (turn["finish_reason_chosen"] == "length") + (turn["finish_reason_rejected"] == "length")
            file.write(json.dumps(outcome["record"], ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, output)
    return Summary(len(keys), resumed, records, turns, cut_off, dict(drops))
