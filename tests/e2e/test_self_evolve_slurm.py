"""Rounds on a real Slurm of two nodes: a chain of jobs that fails, is mended, is warned in training, and decides to stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.rounds import STAGES_OF_A_ROUND, self_evolve, write_model, write_rounds
from tests.support.slurm import SlurmCluster, why_not

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

LAUNCH = "{launcher: slurm, slurm: {defaults: {comment: rounds}, train: {nodes: 2}}}"
AFTER_THE_DECISION = ["1k/convert", *(f"2k/{kind}" for kind in STAGES_OF_A_ROUND)]


def wait_until(holds: Callable[[], bool], folder: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted((folder / "out" / "logs").glob("*.log")))
        assert time.monotonic() < deadline, f"not within {seconds} s\n{logs}"
        time.sleep(0.3)


def jobs_of(path: Path) -> dict[str, str]:
    jobs: dict[str, str] = json.loads((path.parent / "out" / "manifest.json").read_text())["jobs"]
    return jobs


def states(cluster: SlurmCluster, path: Path) -> dict[str, str]:
    done = self_evolve("status", path, environment=cluster.environment)
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: " ".join(line.split()[1:]) for line in done.stdout.splitlines()[1:]}


def test_jobs_follow_each_other_stop_at_a_failure_and_go_on_when_it_is_mended(cluster: SlurmCluster, tmp_path: Path) -> None:
    path = write_rounds(tmp_path, write_model(tmp_path / "model"), launch=LAUNCH, gain=50.0, iterations=40)
    documents = tmp_path / "documents.jsonl"
    good = documents.read_text()
    documents.write_text("not JSON\n")

    def run() -> str:
        done = self_evolve("run", path, environment=cluster.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def idle() -> bool:
        return not cluster.run("squeue", "--noheader").strip()

    assert "17 jobs submitted, each after the one before it" in run()
    assert "Comment=rounds" in cluster.run("scontrol", "show", "job", jobs_of(path)["base/convert"])
    assert "jobs are under way; nothing was submitted" in run()
    assert states(cluster, path)["2k/decide"].endswith("PENDING")
    wait_until(idle, tmp_path, 300)  # those after the failure are gone
    found = states(cluster, path)
    assert (found["base/evaluate"].split()[0], found["1k/generate"].split()[0]) == ("done", "failed")
    assert found["1k/preprocess"] == "to do"

    documents.write_text(good)
    assert "15 jobs submitted" in run(), "what is done is not submitted"
    metrics = tmp_path / "out" / "1k" / "trained" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2, tmp_path, 400)
    train = jobs_of(path)["1k/train"]
    cluster.run("scancel", "--signal=USR1", "--batch", train)  # as Slurm does before the time limit
    job = cluster.wait(train, "PENDING", "COMPLETED", "FAILED", seconds=120)
    assert (job.state, job.restarts) == ("PENDING", 1)
    reached = len(metrics.read_text().splitlines())
    assert 2 <= reached < 40
    assert states(cluster, path)["1k/train"].startswith("interrupted")
    cluster.run("scontrol", "update", f"JobId={train}", "StartTime=now")  # a requeued job waits two minutes otherwise
    wait_until(idle, tmp_path, 400)

    log = (tmp_path / "out" / "logs" / f"1k-train-{train}.log").read_text()
    assert f"resuming after iteration {reached}" in log
    assert "cp 1 pp 1 dp 2" in log, "two nodes made one run"
    found = states(cluster, path)
    assert found["1k/train"].split()[:2] == ["done", "2"]
    assert found["1k/decide"].split()[0] == "done"
    assert {found[name].split()[0] for name in AFTER_THE_DECISION} == {"skipped"}
    for name in AFTER_THE_DECISION:
        log = (tmp_path / "out" / "logs" / f"{name.replace('/', '-')}-{jobs_of(path)[name]}.log").read_text()
        assert f"skipped, because the decision is to stop: {name}" in log
    assert "every stage is done" in run()
    assert (tmp_path / "out" / "report.html").exists()
