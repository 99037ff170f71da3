"""Two rounds with a tiny model, really run: from one file to the report, killed at random, changed, stopped by a mistake."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.evolution.hashing import Hasher
from megatron_longpo.evolution.processes import marked_processes
from megatron_longpo.evolution.stages import EXPORTED, NATIVE, Artifact
from tests.support.recorded_commands import ROOT
from tests.support.rounds import STAGES_OF_A_ROUND, self_evolve, write_model, write_rounds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FIRST = ["base/convert", "base/evaluate", *(f"1k/{kind}" for kind in STAGES_OF_A_ROUND)]
ALL = [*FIRST, "1k/convert", *(f"2k/{kind}" for kind in STAGES_OF_A_ROUND)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, str]:
    """The file of two rounds that were run without interruption, and what was said."""
    path = write_rounds(tmp_path_factory.mktemp("whole"), model)
    done = self_evolve("run", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return path, done.stdout


def records(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path.parent / "out" / "manifest.json").read_text())["stages"]
    return found


def digests(out: Path) -> dict[str, str | None]:
    """Hashes of what a first round leaves, without what has its folder's name in it."""
    hasher, first = Hasher(), out / "1k"
    artifacts = {
        "native": Artifact(out / "base" / "native", NATIVE),
        "pairs": Artifact(first / "pairs.jsonl"),
        **{end: Artifact(first / f"pairs.{end}") for end in ("bin", "idx", "reference-short.npz")},
        "exported": Artifact(first / "exported", EXPORTED),
    }
    return {name: hasher.digest(artifact) for name, artifact in artifacts.items()}


def ruler(out: Path, name: str) -> Any:
    return json.loads((out / "evaluation" / name / "results.json").read_text())["ruler"]["lengths"]


def test_two_rounds_run_from_one_file_to_the_report(whole: tuple[Path, str]) -> None:
    path, said = whole
    out = path.parent / "out"
    assert [line.split()[1] for line in said.splitlines() if line.startswith("$ ")], "each command is shown"
    assert f"[{len(ALL)}/{len(ALL)}] 2k: decide" in said
    assert list(records(path)) == ALL
    assert all(record["exit_code"] == 0 and record["attempts"] == 1 and record["outputs"] for record in records(path).values())
    assert json.loads((out / "2k" / "exported" / "config.json").read_text())["rope_parameters"]["rope_theta"] == 4e4
    rounds = json.loads((out / "report.json").read_text())["rounds"]
    assert [one["training"]["iteration"] for one in rounds] == [[1.0, 2.0, 3.0]] * 2
    assert [one["decision"]["continue"] for one in rounds] == [True, True]
    assert (out / "report.html").read_text().startswith("<!doctype html>")


def test_a_finished_run_runs_nothing_again(whole: tuple[Path, str]) -> None:
    path, _ = whole
    before = records(path)
    started = time.monotonic()
    said = self_evolve("run", path).stdout
    assert said.count("(done before, in ") == len(ALL)
    assert records(path) == before
    assert time.monotonic() - started < 30
    table = self_evolve("status", path).stdout.splitlines()
    assert [line.split()[:2] for line in table[1:]] == [[name, "done"] for name in ALL]


def test_a_kill_at_a_random_moment_of_each_stage_changes_nothing_in_the_end(
    whole: tuple[Path, str], model: Path, tmp_path: Path
) -> None:
    path = write_rounds(tmp_path, model, rounds=1)
    out, rng = tmp_path / "out", random.Random(5)
    command = [sys.executable, "tools/self_evolve.py", "run", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        for name in FIRST:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            deadline = time.monotonic() + 300
            while process.poll() is None and not ((out / "manifest.json").exists() and name in records(path)):
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.02)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 5))
            process.kill()
            process.wait()
            deadline = time.monotonic() + 20
            while marked_processes(os.path.realpath(out)):
                assert time.monotonic() < deadline, "something works on after its run was killed"
                time.sleep(0.05)
    assert self_evolve("run", path).returncode == 0
    assert sum(record["attempts"] > 1 for record in records(path).values()) >= 4, "most stages were interrupted"
    reference = whole[0].parent / "out"
    assert digests(out) == digests(reference)
    for name in ("base", "1k"):
        lengths = ruler(out, name)
        assert lengths == {length: ruler(reference, name)[length] for length in lengths}


def test_a_changed_setting_runs_what_depends_on_it(whole: tuple[Path, str]) -> None:
    path, _ = whole
    before = records(path)
    text = path.read_text()
    path.write_text(text.replace("generator: base}", "generator: base, train: {beta: 0.2}}"))
    assert self_evolve("run", path).returncode == 0
    after = records(path)
    changed = ["2k/train", "2k/export", "2k/evaluate", "2k/decide"]
    assert [name for name in ALL if after[name]["start"] != before[name]["start"]][:3] == changed[:3]
    assert not {name for name in ALL if after[name] != before[name]} - set(changed)
    path.write_text(path.read_text().replace("min-long-gain: -100.0", "min-long-gain: 1"))
    said = self_evolve("run", path).stdout
    assert "stop: long score 0.00 at 1000, +0.00 from before (must gain 1)" in said
    assert "skipped, because the decision is to stop: 1k/convert, 2k/generate" in said
    assert {name for name in ALL if records(path)[name] != after[name]} == {"1k/decide"}


def test_a_missing_input_and_a_failing_stage_end_in_one_line(model: Path, tmp_path: Path) -> None:
    path = write_rounds(tmp_path, model, rounds=1)
    documents = tmp_path / "documents.jsonl"
    documents.rename(tmp_path / "elsewhere.jsonl")
    done = self_evolve("run", path)
    assert (done.returncode, done.stderr) == (1, f"error: {path}: 1k/generate needs {documents}, which is not there\n")
    assert not (tmp_path / "out").exists(), "nothing was run"
    done = self_evolve("plan", path)
    assert done.returncode == 0
    assert f"{documents} is not there yet; 1k/generate needs it" in done.stdout

    own = f"documents: {{command: [cp, {tmp_path}/nowhere, {documents}], output: {documents}}}"
    path.write_text(path.read_text().replace(f"documents: {documents}", own))
    done = self_evolve("run", path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: stage 1k/documents failed with exit code 1; its messages are above")
    assert "Traceback" not in done.stderr
    assert self_evolve("run", path, "--stage", "1k/train").stderr == (
        "error: stage 1k/train needs 1k/documents, which is not done; run that first\n"
    )
    assert (
        "there is no stage 1k/trian; there are base/convert, 1k/documents"
        in self_evolve("run", path, "--stage", "1k/trian").stderr
    )
