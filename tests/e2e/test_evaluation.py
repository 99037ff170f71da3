"""tools/evaluate.py as a user runs it: killed again and again, on a native checkpoint, on mistakes."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest

from megatron_longpo.inference.engine import Completion
from tests.support.evaluation import read_out, write_hotpotqa, write_squad
from tests.support.hf_models import make_hf_model
from tests.support.launch import Nursery
from tests.support.scripted_generation import OpenAIServer

EVALUATE = "tools/evaluate.py"
KILLS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_model(tmp_path_factory.mktemp("model"), "llama")


def num_answers(folder: Path) -> int:
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    return sum(len(json.loads(line)["entries"]) for line in lines)


def results_of(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "results.json").read_text())
    del found["run"]
    return found


def test_kills_at_random_lose_and_repeat_nothing_but_what_was_under_way(nursery: Nursery, model: Path, tmp_path: Path) -> None:
    squad, hotpotqa = write_squad(tmp_path / "squad.json"), write_hotpotqa(tmp_path / "hotpot.json")
    common = ["--tokenizer-model", model, "--tasks", "ruler", "--lengths", 1500, "--samples", 6, "--squad", squad]
    common += ["--hotpotqa", hotpotqa, "--concurrency", 3, "--name", "m"]

    def reply(message: str, seed: int) -> Completion:
        return Completion(read_out(message), "stop", 3)

    with OpenAIServer(reply) as server:
        nursery.start(EVALUATE, ["--server", server.url, "--output", tmp_path / "whole", *common]).succeed()
        assert len(server.asked) == 13 * 6
    rng, lost = random.Random(4), 0
    with OpenAIServer(reply, delay=0.02) as server:
        arguments = ["--server", server.url, "--output", tmp_path / "killed", *common]
        for _ in range(KILLS):
            wanted = len(server.asked) + rng.randint(1, 10)
            before = len(server.asked) - num_answers(tmp_path / "killed" / "m")
            command = nursery.start(EVALUATE, arguments)
            command.wait_until(lambda wanted=wanted: len(server.asked) >= wanted)
            command.send(signal.SIGKILL)
            assert command.wait() == [-signal.SIGKILL]
            time.sleep(0.2)
            lost += len(server.asked) - num_answers(tmp_path / "killed" / "m") - before
            assert not (tmp_path / "killed" / "report.html").exists()
        nursery.start(EVALUATE, arguments).succeed()
        assert len(server.asked) == 13 * 6 + lost
        assert lost <= 3 * KILLS, "no more than the requests under way at a kill"
    assert results_of(tmp_path / "killed" / "m") == results_of(tmp_path / "whole" / "m")
    samples = [(tmp_path / name / "m" / "samples.jsonl").read_bytes() for name in ("killed", "whole")]
    assert samples[0] == samples[1]


def test_a_native_checkpoint_is_exported_and_answers_as_the_folder_that_it_came_from(
    nursery: Nursery, model: Path, tmp_path: Path
) -> None:
    nursery.start("checkpoint_conversion/hf_to_mcore.py", ["--hf", model, "--save", tmp_path / "native"]).succeed()
    common = ["--tasks", "vt", "niah_single_1", "--lengths", 700, "--samples", 2, "--output", tmp_path / "out"]
    arguments = ["--model", f"folder={model}", f"native={tmp_path / 'native'}", *common]
    output = nursery.start(EVALUATE, arguments).succeed().output()
    assert f"{tmp_path / 'native'}: exporting to {tmp_path / 'out' / 'native' / 'exported'}" in output
    rows = [(tmp_path / "out" / name / "samples.jsonl").read_text() for name in ("folder", "native")]
    assert rows[0] == rows[1]
    again = nursery.start(EVALUATE, arguments).succeed().output()
    assert "report:" in again


def test_a_mistake_is_one_line_and_a_failure(nursery: Nursery, model: Path, tmp_path: Path) -> None:
    command = nursery.start(EVALUATE, ["--model", model, "--tasks", "vt", "--lengths", 50, "--output", tmp_path])
    assert command.wait() == [1]
    lines = [line for line in command.output().splitlines() if line]
    assert lines[-1].startswith("error: vt: does not fit into 50 tokens")
    assert not any("Traceback" in line for line in lines)
