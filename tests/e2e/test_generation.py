"""Pairs by a server, with the command killed again and again: nothing is lost, nothing is asked twice."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import httpx2
import pytest

from megatron_longpo.data.dataset import PreferenceDataset
from tests.support.hf_models import make_hf_model
from tests.support.launch import Nursery
from tests.support.local_server import real_gguf, serve_gguf
from tests.support.scripted_generation import OpenAIServer, make_document

GENERATE = "tools/generate_preference_data.py"
KILLS = 10
LONGEST_SECONDS = 900.0


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    started = Nursery(tmp_path_factory.mktemp("logs"))
    yield started
    started.close()


def num_answers(output: Path) -> int:
    """Answers in the journal: whole lines with an entry of a request."""
    journal = output.with_name(f"{output.name}.journal")
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    return sum("finish_reason" in value for line in lines for _, value in json.loads(line)["entries"])


def run_killed(nursery: Nursery, server: OpenAIServer, output: Path, arguments: list[object], step: int, seed: int) -> int:
    """Run the command, killed `KILLS` times after up to ``step`` further requests; returns the requests that a kill has lost."""
    rng = random.Random(seed)
    lost = 0
    for _ in range(KILLS):
        before = len(server.asked) - num_answers(output)
        wanted = len(server.asked) + rng.randint(1, step)
        command = nursery.start(GENERATE, arguments)
        command.wait_until(lambda wanted=wanted: len(server.asked) >= wanted, seconds=300.0)
        time.sleep(rng.random() * 0.02)
        command.send(signal.SIGKILL)
        assert command.wait() == [-signal.SIGKILL]
        settled = -1
        while settled != len(server.asked):  # what the killed process had sent may still be read
            settled = len(server.asked)
            time.sleep(0.1)
        lost += len(server.asked) - num_answers(output) - before
        assert not output.exists()
    nursery.start(GENERATE, arguments).succeed(LONGEST_SECONDS)
    return lost


def check_nothing_was_lost_or_repeated(server: OpenAIServer, lost: int) -> None:
    """Every request was asked once, and once more for each time that a kill took its answer."""
    messages = [payload["messages"][0]["content"] for payload in server.asked]
    assert len(messages) == len(set(messages)) + lost


def test_ten_kills_at_random_change_nothing(nursery: Nursery, tmp_path: Path) -> None:
    folder, model = tmp_path / "documents", make_hf_model(tmp_path / "model", "llama")
    folder.mkdir()
    for number in range(12):
        (folder / f"book{number:02d}.txt").write_text(make_document(f"book{number}", 10 + number % 3).text)
    common = ["--input", folder, "--tokenizer-model", model, "--seq-length", 3000, "--min-document-tokens", 1]
    common += ["--min-chunk-tokens", 80, "--max-chunk-tokens", 200, "--max-question-tokens", 80, "--max-new-tokens", 80]
    common += ["--num-turns", 3, "--verify", "filter", "--max-retries", 20]
    outputs = {}
    for name, concurrency in (("straight", 1), ("one", 1), ("many", 6)):
        output = tmp_path / f"{name}.jsonl"
        arguments = [*common, "--output", output, "--dataset-prefix", tmp_path / name, "--concurrency", concurrency]
        with OpenAIServer(delay=0.002) as server:
            arguments += ["--server", server.url]
            if name == "straight":
                nursery.start(GENERATE, arguments).succeed()
                lost = 0
            else:
                lost = run_killed(nursery, server, output, arguments, step=24, seed=len(name))
                assert lost <= KILLS * concurrency
            check_nothing_was_lost_or_repeated(server, lost)
        outputs[name] = (output.read_bytes(), output.with_name(f"{output.name}.dropped.jsonl").read_bytes())
        assert len(PreferenceDataset(str(tmp_path / name))) == 12
    assert outputs["one"] == outputs["straight"]
    assert outputs["many"] == outputs["straight"]
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "straight.bin").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_change_nothing_with_a_real_model_behind_a_real_server(nursery: Nursery, tmp_path: Path) -> None:
    folder, model = tmp_path / "documents", tmp_path / "tokenizer"
    folder.mkdir()
    save_tokenizer(real_gguf(), model)
    for name in ("execmodel", "naming"):
        (folder / f"{name}.txt").write_text(topics[name].strip()[:1500])
    common = ["--input", folder, "--tokenizer-model", model, "--concurrency", 1, "--seq-length", 1024, "--num-turns", 2]
    common += ["--min-document-tokens", 100, "--min-chunk-tokens", 40, "--max-chunk-tokens", 90, "--max-question-tokens", 40]
    common += ["--question-max-new-tokens", 60, "--num-questions", 2, "--max-new-tokens", 64, "--verify", "record"]
    common += ["--lead-in-file", "examples/quickstart/lead_ins.txt"]  # they ask for one short sentence
    outputs = {}
    # One slot and no prompt cache: an answer depends on its request alone.
    with serve_gguf(real_gguf(), context_length=1024, no_prompt_cache=True, seconds=180.0) as real:
        for name in ("straight", "killed"):
            output = tmp_path / f"{name}.jsonl"
            with OpenAIServer(upstream=real.url, models=(gguf_name(real.url),)) as counting:
                arguments = [*common, "--output", output, "--server", counting.url, "--dataset-prefix", tmp_path / name]
                if name == "straight":
                    nursery.start(GENERATE, arguments).succeed(LONGEST_SECONDS)
                    lost = 0
                else:
                    lost = run_killed(nursery, counting, output, arguments, step=3, seed=1)
                    assert lost <= KILLS
                check_nothing_was_lost_or_repeated(counting, lost)
            outputs[name] = output.read_bytes()
    assert outputs["killed"] == outputs["straight"]
    records = [json.loads(line) for line in outputs["straight"].splitlines()]
    assert records
    assert all(turn["chosen"] and turn["rejected"] for record in records for turn in record["turns"])
    assert len(PreferenceDataset(str(tmp_path / "killed"))) == len(records)


def save_tokenizer(gguf: Path, folder: Path) -> None:
    """Write the tokenizer that a GGUF file carries, with its chat template, as a Hugging Face folder."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def gguf_name(url: str) -> str:
    """Name of the model that a server serves."""
    found = httpx2.get(f"{url}/models", trust_env=False).json()
    return str(found["data"][0]["id"])
