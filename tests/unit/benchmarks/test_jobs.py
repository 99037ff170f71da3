import dataclasses
import json
import os
from pathlib import Path

import pytest

from benchmarks import jobs
from benchmarks.jobs import Bench, Job, keep_freed_memory_out
from megatron_longpo.utils.errors import UserError

JOB = Job(name="counted", function="tests.unit.benchmarks.test_jobs:count", arguments={})


def count(path: str, fail: bool = False) -> dict[str, str]:
    """Runs in the job's processes: leaves a line, and answers with its environment."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("called\n")
    if fail:
        raise ValueError("asked for")
    return {name: os.environ.get(name, "") for name in ("RANK", "OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_")}


def calls(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_what_is_measured_is_kept_until_the_job_or_the_code_changes_or_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    job = dataclasses.replace(JOB, arguments={"path": str(log)})
    first = Bench(tmp_path).run(job)
    assert Bench(tmp_path).run(job) == first
    assert calls(log) == 1
    Bench(tmp_path).run(dataclasses.replace(job, threads=2))
    assert calls(log) == 2
    forced = Bench(tmp_path, force=True)
    forced.run(job)
    forced.run(job)  # once a run
    assert calls(log) == 3
    monkeypatch.setattr(jobs, "hash_code", lambda: "of other code")
    Bench(tmp_path).run(job)
    assert calls(log) == 4


def test_each_rank_has_a_process_with_the_job_s_environment(tmp_path: Path) -> None:
    arguments = {"path": str(tmp_path / "log")}
    job = dataclasses.replace(JOB, arguments=arguments, ranks=2, threads=3, environment=keep_freed_memory_out())
    found = Bench(tmp_path).run(job)
    assert [rank["RANK"] for rank in found] == ["0", "1"]
    assert {(rank["OMP_NUM_THREADS"], rank["MALLOC_MMAP_THRESHOLD_"]) for rank in found} == {("3", "262144")}
    assert [path.name for path in (tmp_path / "measurements").iterdir()] == ["counted.json"]


def test_a_failed_job_keeps_its_output_and_no_result(tmp_path: Path) -> None:
    job = dataclasses.replace(JOB, arguments={"path": str(tmp_path / "log"), "fail": True})
    with pytest.raises(UserError, match=r"counted: rank 0 ended with 1; its output is .*counted\.rank0\.log"):
        Bench(tmp_path).run(job)
    assert "asked for" in (tmp_path / "measurements" / "counted.rank0.log").read_text()
    assert not (tmp_path / "measurements" / "counted.json").exists()


def test_a_job_that_does_not_end_is_ended(tmp_path: Path) -> None:
    job = Job(name="sleeping", function="time:sleep", arguments={})
    with pytest.raises(UserError):
        Bench(tmp_path).run(job)  # sleep() takes no keyword: fails at once, like any wrong call
    slow = Job(name="slow", function="tests.unit.benchmarks.test_jobs:wait", arguments={})
    with pytest.raises(UserError, match=r"slow: not done after 1 s"):
        Bench(tmp_path, timeout=1.0).run(slow)


def wait() -> None:
    """Runs in the job's process."""
    import time

    time.sleep(60)


def test_a_kept_file_names_its_job(tmp_path: Path) -> None:
    job = dataclasses.replace(JOB, arguments={"path": str(tmp_path / "log")})
    Bench(tmp_path).run(job)
    kept = json.loads((tmp_path / "measurements" / "counted.json").read_text())
    assert kept["job"]["arguments"] == job.arguments
