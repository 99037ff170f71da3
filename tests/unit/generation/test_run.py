import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.generation.documents import DocumentSource
from megatron_longpo.generation.dry_run import dry_run
from megatron_longpo.generation.filters import FILTERS, FilterSettings
from megatron_longpo.generation.pipeline import Generator
from megatron_longpo.generation.run import Job, beside, generate, merge
from megatron_longpo.generation.settings import GenerationSettings
from megatron_longpo.generation.shards import Shard
from megatron_longpo.inference.engine import Completion, PromptTokenizer
from megatron_longpo.inference.http_server import HttpServer, Limits
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.inference.server_engine import ServerEngine, ServerPool
from megatron_longpo.inference.transformers_engine import TransformersEngine
from megatron_longpo.utils.errors import UserError
from tests.support.scripted_generation import OpenAIServer, ScriptedEngine, answer, some_faults

REPOSITORY = Path(__file__).parents[3]
SETTINGS = GenerationSettings(
    num_turns=2,
    seq_length=2048,
    min_chunk_tokens=60,
    max_chunk_tokens=200,
    max_question_tokens=60,
    question_sampling=Sampling(temperature=1.0, max_new_tokens=8),
    answer_sampling=Sampling(temperature=1.0, max_new_tokens=8),
)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    lines = []
    for number in range(5):
        marks = (f"p{place}-of-d{number}" for place in range(6 + number % 3))
        text = "".join(f"{mark} A paragraph about something, told by someone.\n\n" for mark in marks)
        lines.append(json.dumps({"document_id": f"d{number}", "text": text}))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def tokenizer(random_model: Path) -> PromptTokenizer:
    return PromptTokenizer.load(random_model)


def make_job(documents: Path, output: Path, **changes: Any) -> Job:
    return Job(source=DocumentSource(path=str(documents)), output=output, **changes)


def scripted(tokenizer: PromptTokenizer, engine: Any = None, **changes: Any) -> Generator:
    engine = engine or ScriptedEngine()
    return Generator(engine, engine, tokenizer, 4096, dataclasses.replace(SETTINGS, **changes))


def in_process(folder: Path) -> Generator:
    tokenizer = PromptTokenizer.load(folder)
    limits = {"group_size": 2, "max_batch_tokens": 900}
    engine = TransformersEngine.load(folder, tokenizer, dtype="float32", device=torch.device("cpu"), **limits)
    settings = dataclasses.replace(SETTINGS, filters=FilterSettings(enabled=frozenset()))  # this model only asks
    return Generator(engine, engine, tokenizer, engine.context_length, settings)


def test_an_interrupted_run_goes_on_to_the_same_bytes_and_asks_for_nothing_twice(
    documents: Path, tmp_path: Path, chain_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = in_process(chain_model)
    straight, resumed = tmp_path / "straight.jsonl", tmp_path / "resumed.jsonl"
    batches: list[tuple[Any, ...]] = []
    budget = itertools.count()
    complete_batch = TransformersEngine._complete_batch

    def count(self: Any, cache: Any, shared: int, tails: Any, sampling: Any, seeds: list[int]) -> list[Completion]:
        if next(budget) >= allowed:
            raise KeyboardInterrupt
        batches.append(tuple(seeds))
        return complete_batch(self, cache, shared, tails, sampling, seeds)

    monkeypatch.setattr(TransformersEngine, "_complete_batch", count)
    allowed = 10_000
    summary = generate(make_job(documents, straight), generator)
    assert (summary.documents, summary.resumed, summary.records, summary.turns) == (5, 0, 5, 10)
    expected, batches = sorted(batches), []
    assert len(expected) > 8

    interruptions = 0
    while not resumed.exists() and interruptions < 100:
        budget, allowed = itertools.count(), 2
        try:
            generate(make_job(documents, resumed), generator)
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= len(expected) // 2 - 1
    assert sorted(batches) == expected  # every batch once, in all runs together
    assert resumed.read_bytes() == straight.read_bytes()
    assert beside(resumed, "dropped.jsonl").read_bytes() == beside(straight, "dropped.jsonl").read_bytes()

    before, allowed = len(batches), 0
    assert generate(make_job(documents, resumed), generator).resumed == 5
    assert len(batches) == before
    assert resumed.read_bytes() == straight.read_bytes()


def test_other_settings_and_other_texts_are_made_anew(documents: Path, tmp_path: Path, chain_model: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    generator, job = in_process(chain_model), make_job(documents, tmp_path / "pairs.jsonl")
    generate(job, generator)
    before = output.read_text()
    lines = documents.read_text().splitlines()
    documents.write_text("\n".join([lines[0].replace("something", "anything"), *lines[1:]]))
    assert generate(job, generator).resumed == 4
    assert before.splitlines()[1:] == output.read_text().splitlines()[1:]
    raised = dataclasses.replace(generator, long=generator.long.with_rotary_base(1e7))
    summary = generate(job, raised)
    assert (summary.resumed, summary.records) == (0, 5)


def test_another_chat_template_makes_everything_anew(documents: Path, tmp_path: Path, random_model: Path) -> None:
    job = make_job(documents, tmp_path / "pairs.jsonl")
    generate(job, scripted(PromptTokenizer.load(random_model)))
    again = PromptTokenizer.load(random_model).tokenizer
    again.chat_template = again.chat_template.replace("user", "human").replace("<|im_start|>", "<|im_start|> ")
    other = PromptTokenizer(again)
    assert other.fingerprint != PromptTokenizer.load(random_model).fingerprint
    assert generate(job, scripted(other)).resumed == 0


def test_documents_that_change_while_they_are_read_end_the_run(
    documents: Path, tmp_path: Path, tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(documents, tmp_path / "pairs.jsonl")
    first = list(job.documents())
    grown = dataclasses.replace(first[3], text="Now " + first[3].text)
    for later in ([*first[:3], grown, first[4]], first[:-1], [*first, dataclasses.replace(grown, document_id="d9")]):
        readings = iter([first, later])
        monkeypatch.setattr(DocumentSource, "read", lambda self, readings=readings: iter(next(readings)))
        with pytest.raises(UserError, match=r"documents.jsonl: changed while it was read"):
            generate(job, scripted(tokenizer, ScriptedEngine(group_size=1)))
        assert not job.output.exists()


def test_answers_serve_other_settings_that_ask_the_same(documents: Path, tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    engine, job = ScriptedEngine(), make_job(documents, tmp_path / "pairs.jsonl")
    generate(job, scripted(tokenizer, engine))
    asked = len(engine.asked)
    generate(job, scripted(tokenizer, engine, verify="filter"))
    assert all("Reply with one" in message for message in engine.asked[asked:])
    assert len(engine.asked) == asked + 3 * 10


def test_shards_merge_to_what_one_run_makes(documents: Path, tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    generate(make_job(documents, whole), scripted(tokenizer))
    shards = [make_job(documents, parts, shard=Shard(index, 3)) for index in range(3)]
    with pytest.raises(UserError, match=r"shard-00000-of-00003.journal.*run this shard first"):
        merge(make_job(documents, parts), 3)
    counts = [generate(job, scripted(tokenizer)).documents for job in shards]
    assert counts == [2, 2, 1]
    assert [job.share_of_output.name for job in shards][1] == "parts.jsonl.shard-00001-of-00003"
    summary = merge(make_job(documents, parts), 3)
    assert (summary.documents, summary.records, summary.turns) == (5, 5, 10)
    assert parts.read_bytes() == whole.read_bytes()
    generate(shards[2], scripted(tokenizer, seed=7))
    with pytest.raises(UserError, match=r"shard-00002-of-00003.journal: was made with other settings"):
        merge(make_job(documents, parts), 3)
    for text in ("3/3", "-1/2", "1", "a/b", "0/0"):
        with pytest.raises(UserError, match="give i/n"):
            Shard.parse(text)


def test_a_shard_that_is_not_done_is_not_merged(documents: Path, tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    parts = tmp_path / "parts.jsonl"
    for index in range(2):
        job = make_job(documents, parts, shard=Shard(index, 2), max_documents=3 if index else None)
        generate(job, scripted(tokenizer))
    with pytest.raises(UserError, match=r"shard-00001-of-00002.journal: document 'd3' is not done"):
        merge(make_job(documents, parts), 2)
    assert not parts.exists()


def serve(tokenizer: PromptTokenizer, *servers: OpenAIServer, concurrency: int = 2, max_retries: int = 12) -> ServerEngine:
    limits = Limits(concurrency=concurrency, timeout=5.0, max_retries=max_retries)
    pool = ServerPool([HttpServer(server.url, limits) for server in servers], limits, wait=lambda _: None)
    return ServerEngine(pool, tokenizer)


@pytest.mark.slow
def test_the_output_does_not_depend_on_concurrency_servers_or_faults(
    documents: Path, tmp_path: Path, tokenizer: PromptTokenizer
) -> None:
    outputs = []
    kinds = ("429", "500", "cut", "truncated", "no-choices", "not-json", "null")
    for number, (count, concurrency, share) in enumerate([(1, 1, 0.0), (1, 8, 0.3), (3, 4, 0.3)]):
        servers = [OpenAIServer(faults=some_faults(seed, share, kinds), delay=0.002 * seed) for seed in range(count)]
        output = tmp_path / f"{number}.jsonl"
        generate(make_job(documents, output), scripted(tokenizer, serve(tokenizer, *servers, concurrency=concurrency)))
        answered = sum((server.answered for server in servers), start=servers[0].answered.__class__())
        assert set(answered.values()) == {1}
        outputs.append((output.read_bytes(), set(answered)))
        for server in servers:
            server.close()
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.slow
def test_requests_without_an_answer_hold_the_output_back_until_told_otherwise(
    documents: Path, tmp_path: Path, tokenizer: PromptTokenizer
) -> None:
    output = tmp_path / "pairs.jsonl"
    whole = tmp_path / "whole.jsonl"
    with OpenAIServer() as server:
        generate(make_job(documents, whole), scripted(tokenizer, serve(tokenizer, server)))
    victim = next(message for message in server.answered if "Write " not in message)
    with OpenAIServer(faults=lambda message, tries: "500" if message == victim else None) as server:
        engine = serve(tokenizer, server, concurrency=1, max_retries=1)
        with pytest.raises(UserError, match=r"1 requests about 1 documents got no answer .*HTTP 500.*--allow-failed"):
            generate(make_job(documents, output), scripted(tokenizer, engine))
        assert not output.exists()
        first = dict(server.answered)
        summary = generate(make_job(documents, output, allow_failed=True), scripted(tokenizer, engine))
        assert summary.drops["turn: chosen answer: request failed"] == 1
        assert summary.records == 5
        assert all(server.answered[message] == 1 for message in first)
    output.unlink()
    beside(output, "journal").unlink()
    with OpenAIServer(faults=lambda message, tries: "500" if message == victim and tries < 2 else None) as server:
        engine = serve(tokenizer, server, concurrency=1, max_retries=1)
        with pytest.raises(UserError, match="got no answer"):
            generate(make_job(documents, output), scripted(tokenizer, engine))
        before = set(server.answered)
        generate(make_job(documents, output), scripted(tokenizer, engine))
        assert server.answered[victim] == 1
        assert all(server.answered[message] == 1 for message in before)
    texts = [[json.loads(line)["turns"] for line in path.read_text().splitlines()] for path in (whole, output)]
    assert texts[0] == texts[1]


def test_documents_of_which_a_part_is_used_are_counted(documents: Path, tmp_path: Path, tokenizer: PromptTokenizer) -> None:
    texts = {record["document_id"]: record["text"] for record in map(json.loads, documents.read_text().splitlines())}
    found = {}
    for seq_length in (2048, 500, 450):
        job, generator = make_job(documents, tmp_path / f"{seq_length}.jsonl"), scripted(tokenizer, seq_length=seq_length)
        found[seq_length] = generate(job, generator).parts
        records = [json.loads(line) for line in job.output.read_text().splitlines()]
        assert found[seq_length] == sum(record["long_context"] != texts[record["document_id"]] for record in records)
        assert json.loads(beside(job.output, "report.json").read_text())["parts"] == found[seq_length]
        told = [line for line in dry_run(job, generator) if "too long for --seq-length" in line]
        line = f"  {found[seq_length]} are too long for --seq-length with its turns: a part of each is used"
        assert told == ([line] if found[seq_length] else [])
    assert found[2048] == 0 < found[450]


def test_the_report_and_the_dropped_turns_lie_beside_the_output(
    documents: Path, tmp_path: Path, tokenizer: PromptTokenizer
) -> None:
    class Refusing(ScriptedEngine):
        def reply(self, message: str, seed: int) -> Completion:
            made = answer(message, seed)
            return Completion("I cannot help with that.", "stop", 9) if seed % 3 == 0 and "1." not in made.text else made

    output = tmp_path / "pairs.jsonl"
    summary = generate(make_job(documents, output), scripted(tokenizer, Refusing()))
    dropped = [json.loads(line) for line in beside(output, "dropped.jsonl").read_text().splitlines()]
    counted = sum(number for reason, number in summary.drops.items() if reason.startswith("turn:"))
    assert len(dropped) == counted > 0
    report = json.loads(beside(output, "report.json").read_text())
    assert report["run"]["requests"] == summary.requests
    assert "<html" in beside(output, "report.html").read_text()


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/generate_preference_data.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


LENGTHS = ("--seq-length", 2048, "--min-document-tokens", 1, "--min-chunk-tokens", 60, "--max-chunk-tokens", 200)


@pytest.mark.slow
def test_the_command_makes_records_with_their_origin(documents: Path, tmp_path: Path, chain_model: Path) -> None:
    output = tmp_path / "out" / "pairs.jsonl"
    lead_ins = tmp_path / "lead_ins.txt"
    lead_ins.write_text("Say briefly:\n\nTell me:\n")
    options = ["--preset", "release", *LENGTHS, "--skip-filter", *FILTERS]
    options += ["--max-new-tokens", 4, "--lead-in-file", lead_ins, "--rotary-base", 1e6, "--max-documents", 3]
    done = run_tool("--input", documents, "--output", output, "--model", chain_model, *options)
    assert done.returncode == 0, done.stderr
    assert "3 records with 6 turns, from 3 documents" in done.stdout
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["document_id"] for record in records] == ["d0", "d1", "d2"]
    for record in records:
        generation = record["metadata"]["generation"]
        assert generation["answer_sampling"] == {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4}
        assert (generation["short"]["rope"]["rope_theta"], generation["long"]["rope"]["rope_theta"]) == (1e4, 1e6)
        for turn, origin in zip(record["turns"], record["metadata"]["turns"], strict=True):
            assert turn["instruction"].startswith(("Say briefly: Which thing", "Tell me: Which thing"))
            assert origin["finish_reason_chosen"] == origin["finish_reason_rejected"] == "length"


@pytest.mark.slow
def test_a_dry_run_counts_and_shows_without_a_model(documents: Path, tmp_path: Path, random_model: Path) -> None:
    tokenizer_alone = tmp_path / "tokenizer"
    tokenizer_alone.mkdir()
    for file in random_model.glob("*token*"):
        (tokenizer_alone / file.name).write_bytes(file.read_bytes())
    for file in random_model.glob("chat_template*"):
        (tokenizer_alone / file.name).write_bytes(file.read_bytes())
    output = tmp_path / "pairs.jsonl"
    done = run_tool(
        *(
            "--input",
            documents,
            "--output",
            output,
            "--tokenizer-model",
            tokenizer_alone,
            "--dry-run",
            "--num-turns",
            2,
            *LENGTHS,
        ),
        *("--max-new-tokens", 50, "--question-max-new-tokens", 30, "--max-question-tokens", 40),
    )
    assert done.returncode == 0, done.stderr
    assert "documents   5 of 5 give chunks" in done.stdout
    assert "turns       10," in done.stdout
    assert done.stdout.count("A paragraph about something") >= 3
    assert "<|im_start|>user" in done.stdout
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert (rows["chosen"][1], rows["rejected"][1], rows["questions"][1], rows["all"][1]) == ("500", "500", "300", "1,300")
    assert not list(tmp_path.glob("pairs.jsonl*"))


@pytest.mark.slow
def test_the_command_fails_in_one_line(documents: Path, tmp_path: Path, random_model: Path) -> None:
    silent = run_tool("--input", documents, "--output", tmp_path / "a.jsonl", "--model", tmp_path)
    assert (silent.returncode, silent.stderr.count("error:")) == (1, 1)
    assert "no tokenizer could be read" in silent.stderr
    options = [*LENGTHS, "--max-new-tokens", 8, "--num-turns", 1, "--question-max-new-tokens", 8, "--max-question-tokens", 40]
    nothing = run_tool("--input", documents, "--output", tmp_path / "b.jsonl", "--model", random_model, *options)
    assert nothing.returncode == 1
    assert "no question in the model's output" in nothing.stdout
    assert "gave a pair; the reasons are above" in nothing.stderr
