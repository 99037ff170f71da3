"""All documents to one file of records, going on where an earlier run stopped."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from megatron_longpo.generation.documents import Document, DocumentSource
from megatron_longpo.generation.pipeline import Generator
from megatron_longpo.generation.records import restore_texts
from megatron_longpo.generation.report_page import write_report
from megatron_longpo.generation.shards import Shard, read_share
from megatron_longpo.generation.statistics import collect
from megatron_longpo.generation.work import Outcome
from megatron_longpo.inference.asking import Asker
from megatron_longpo.inference.journal import Journal
from megatron_longpo.inference.threads import in_threads
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.progress import progress_bar

RUN = "run"
"""Key of the journal's entry that tells which settings and engines the last run over it had."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a run works on.

    Attributes:
        source: the documents.
        output: file of records.
        max_documents: take the first of them only.
        shard: this run's share.
        allow_failed: do without the turns whose requests got no answer.
    """

    source: DocumentSource
    output: Path
    max_documents: int | None = None
    shard: Shard = dataclasses.field(default_factory=Shard)
    allow_failed: bool = False

    @property
    def share_of_output(self) -> Path:
        """Where this run's records go."""
        return self.shard.path(self.output)

    def documents(self) -> Iterator[Document]:
        """Read this run's documents."""
        return read_share(self.source, self.shard, self.max_documents)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run made.

    Attributes:
        documents: documents read.
        resumed: of these, those that an earlier run had done.
        records: lines of the output.
        turns: turns in them.
        parts: records that hold a part of their document, which is too long for ``seq_length``.
        drops: how often something was dropped, by reason.
        requests: requests of this run.
    """

    documents: int
    resumed: int
    records: int
    turns: int
    parts: int
    drops: dict[str, int]
    requests: int


def beside(output: Path, ending: str) -> Path:
    """Return a file that belongs to an output: its ``journal``, ``dropped.jsonl``, ``report.json`` or ``report.html``."""
    return output.with_name(f"{output.name}.{ending}")


def generate(job: Job, generator: Generator) -> Summary:
    """Make the records of all documents and write them, in the documents' order.

    Every answer and every finished document is kept in a journal beside the output, so that a re-run asks only for what is
    missing. The output appears when it is complete.

    Raises:
        UserError: the documents cannot be read, the settings cannot work with this model, an engine gives up, or some requests
            got no answer and ``allow_failed`` is off.
    """
    generator.document_budget()
    described = generator.describe() | {"lead_ins": list(generator.settings.lead_ins)}
    fingerprint = _hash(described)
    output = job.share_of_output
    _check_place(output)
    keys = [_key(fingerprint, document) for document in job.documents()]
    started = time.monotonic()
    with Journal(beside(output, "journal")) as journal:
        asker = Asker(journal)
        if RUN not in journal or journal.read(RUN)["fingerprint"] != fingerprint:
            journal.append({RUN: {"fingerprint": fingerprint, "settings": described}})
        resumed = sum(_is_done(job, journal, key) for key in keys)
        failed = _work(job, generator, keys, asker, journal)
        if failed:
            raise UserError(
                f"{asker.usage.failed} requests about {failed} documents got no answer (the first: {asker.first_error}); "
                f"{output} was not written. The same command asks for them again; --allow-failed does without their turns"
            )
        run = {"settings": described, "seconds": round(time.monotonic() - started, 1), **dataclasses.asdict(asker.usage)}
        return _write(job, output, [journal], fingerprint, resumed, run)


def merge(job: Job, count: int) -> Summary:
    """Join the outputs of ``count`` shards, in the documents' order; no model is needed.

    Raises:
        UserError: a shard's journal is missing or was made with other settings, or a document is not done.
    """
    _check_place(job.output)
    with ExitStack() as stack:
        paths = [beside(Shard(index, count).path(job.output), "journal") for index in range(count)]
        journals = [stack.enter_context(Journal(path, read_only=True)) for path in paths]
        runs = [journal.read(RUN) if RUN in journal else None for journal in journals]
        for path, run in zip(paths, runs, strict=True):
            if run is None or runs[0] is None or run["fingerprint"] != runs[0]["fingerprint"]:
                raise UserError(f"{path}: was made with other settings than the first shard; run all shards with the same ones")
        assert runs[0] is not None
        return _write(job, job.output, journals, runs[0]["fingerprint"], 0, {"settings": runs[0]["settings"], "shards": count})


def _work(job: Job, generator: Generator, keys: Sequence[str], asker: Asker, journal: Journal) -> int:
    """Work on every document that is not done; returns how many stay undone because requests got no answer."""
    engine = generator.short
    undone = 0

    def make(group: list[tuple[str, Document]]) -> list[Outcome]:
        return list(generator.make_records([document for _, document in group], asker))

    started, resumed = time.monotonic(), sum(_is_done(job, journal, key) for key in keys)
    with progress_bar(total=len(keys), initial=resumed, unit="document", desc="generate") as bar:
        groups = _groups(job, keys, engine.group_size, journal)
        for group, outcomes in in_threads(make, groups, engine.concurrency):
            pairs = zip(group, outcomes, strict=True)
            found = {key: outcome for (key, _), outcome in pairs if not _is_done(job, journal, key)}
            done = {key: outcome for key, outcome in found.items() if job.allow_failed or not outcome.failed}
            journal.append({key: dataclasses.asdict(outcome) for key, outcome in done.items()})
            undone += len(found) - len(done)
            bar.update(len(done))
            rate = asker.usage.tokens / (time.monotonic() - started)
            bar.set_postfix_str(f"{asker.usage.requests} requests, {rate:.1f} tokens/s")
    return undone


def _is_done(job: Job, journal: Journal, key: str) -> bool:
    """Whether a document needs no more work. One that lacks answers is done only for a run that goes on without them."""
    return key in journal and (job.allow_failed or not journal.read(key)["failed"])


def _groups(job: Job, keys: Sequence[str], size: int, journal: Journal) -> Iterator[list[tuple[str, Document]]]:
    """Consecutive documents, without the groups that are done.

    Raises:
        UserError: the documents are others than they were when the run began.
    """
    fingerprint = journal.read(RUN)["fingerprint"]
    work = itertools.zip_longest(keys, job.documents())
    while group := list(itertools.islice(work, size)):
        for key, document in group:
            if key is None or document is None or _key(fingerprint, document) != key:
                raise UserError(f"{job.source.path}: changed while it was read; run the command again")
        if not all(_is_done(job, journal, key) for key, _ in group):
            yield group


def _check_place(output: Path) -> None:
    """Refuse an output that could not be written, before any work is done."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}; give a file in a folder") from None
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; give a file")


def _write(job: Job, output: Path, journals: Sequence[Journal], fingerprint: str, resumed: int, run: dict[str, Any]) -> Summary:
    """Write the records, the dropped turns and the report from the journals, of which each has every so-manieth document."""
    drops: collections.Counter[str] = collections.Counter()
    documents = records = turns = 0

    def write(kept: TextIO, dropped: TextIO) -> None:
        nonlocal documents, records, turns
        for place, document in enumerate(job.documents()):
            journal, key = journals[place % len(journals)], _key(fingerprint, document)
            if key not in journal:
                raise UserError(
                    f"{journal.path}: document {document.document_id!r} is not done; run that shard again, with the same "
                    "documents, columns and --domain as here"
                )
            outcome = Outcome(**journal.read(key))
            documents += 1
            drops.update(outcome.drops)
            dropped.writelines(_line(row) for row in outcome.dropped)
            if outcome.record is not None:
                records, turns = records + 1, turns + len(outcome.record["turns"])
                kept.write(_line(restore_texts(outcome.record, document)))

    rejected = beside(output, "dropped.jsonl")
    _write_files([output, rejected], write)
    counts = {"documents": documents, "records": records, "turns": turns}
    statistics = collect(_read_lines(output), _read_lines(rejected), dict(drops), {**run, **counts})
    write_report(statistics, beside(output, "report.json"), beside(output, "report.html"))
    return Summary(documents, resumed, records, turns, statistics["parts"], dict(drops), run.get("requests", 0))


def _write_files(paths: Sequence[Path], write: Callable[..., None]) -> None:
    """Write files that are whole or absent."""
    partial = [beside(path, "partial") for path in paths]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in partial]
        write(*files)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    for temporary, path in reversed(list(zip(partial, paths, strict=True))):
        os.replace(temporary, path)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _read_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _key(fingerprint: str, document: Document) -> str:
    return _hash([fingerprint, dataclasses.asdict(document)])
