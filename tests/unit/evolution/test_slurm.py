"""What is handed to Slurm, in which order and with which options; Slurm itself is tried in tests/e2e."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_longpo.evolution import slurm
from megatron_longpo.evolution.config import Config, read_config
from megatron_longpo.evolution.manifest import Manifest
from megatron_longpo.evolution.plan import Plan
from megatron_longpo.utils.errors import UserError
from tests.support.recorded_commands import ROOT

TEXT = """
output: {folder}/out
model: m
launch:
  launcher: slurm
  processes: 4
  slurm:
    defaults: {{partition: gpu, time: 24:00:00, exclusive: true, nice: false}}
    train: {{nodes: 2, time: 48:00:00, exclude: [n1, n2]}}
defaults: {{train: {{train-iters: 1}}}}
rounds: [{{name: a, seq-length: 100, documents: docs}}]
"""
STAND_IN = """#!{python}
import json, os, sys
folder, name = {folder!r}, os.path.basename(sys.argv[0])
lines = open(f"{{folder}}/{{name}}.jsonl", "a+")
lines.seek(0)
number = len(lines.readlines())
lines.write(json.dumps(sys.argv[1:]) + "\\n")
if name == "squeue":
    print(open(f"{{folder}}/queue").read())
elif number == {most}:
    sys.exit("sbatch: error: Batch job submission failed:\\n no such partition")
else:
    print(f"{{100 + number}};cluster")
"""


@pytest.fixture
def rounds(tmp_path: Path, plan_of: Callable[[Config], Plan], monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Plan]:
    monkeypatch.chdir(ROOT)
    (tmp_path / "rounds.yaml").write_text(TEXT.format(folder=tmp_path))
    config = read_config(tmp_path / "rounds.yaml")
    return config, plan_of(config)


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, most: int = 1000) -> None:
    """Put programs in Slurm's place: sbatch refuses the job after ``most``, squeue prints the file ``queue``."""
    (folder / "bin").mkdir()
    for name in ("sbatch", "squeue"):
        program = folder / "bin" / name
        program.write_text(STAND_IN.format(python=sys.executable, folder=str(folder), most=most))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def submitted(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "sbatch.jsonl").read_text().splitlines()]


def test_each_stage_is_a_job_after_the_one_before_it(
    rounds: tuple[Config, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plan = rounds
    stand_in(tmp_path, monkeypatch)
    jobs = slurm.submit(config, plan.stages, Manifest(config.output))
    assert list(jobs.items())[:2] == [("base/convert", "100"), ("base/evaluate", "101")]
    assert Manifest(config.output).jobs == jobs
    for number, (stage, words) in enumerate(zip(plan.stages, submitted(tmp_path), strict=True)):
        assert words[-4:] == ["examples/slurm/stage.sbatch", sys.executable, f"{tmp_path}/rounds.yaml", stage.name]
        dependencies = [word for word in words if word.startswith("--dependency")]
        assert dependencies == ([f"--dependency=afterok:{99 + number}"] if number else [])
        assert {"--parsable", "--kill-on-invalid-dep=yes", f"--job-name=longpo-{stage.name}"} <= {*words}
        (log,) = (word.removeprefix("--output=") for word in words if word.startswith("--output="))
        assert log.replace("%j", jobs[stage.name]) == str(slurm.log_of(config, stage.name, jobs[stage.name]))


def test_a_stage_s_own_options_stand_over_those_of_all(
    rounds: tuple[Config, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plan = rounds
    stand_in(tmp_path, monkeypatch)
    slurm.submit(config, plan.stages, Manifest(config.output))
    by_name = {words[-1]: words for words in submitted(tmp_path)}
    assert {"--partition=gpu", "--time=24:00:00", "--exclusive"} <= {*by_name["a/generate"]}
    assert {"--partition=gpu", "--time=48:00:00", "--nodes=2", "--exclude=n1", "--exclude=n2"} <= {*by_name["a/train"]}
    assert not {"--nice", "--nice=false", "--time=24:00:00"} & {*by_name["a/train"]}


def test_a_job_that_sbatch_refuses_is_told_and_those_before_it_are_known(
    rounds: tuple[Config, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plan = rounds
    stand_in(tmp_path, monkeypatch, most=2)
    with pytest.raises(UserError, match=r"^sbatch failed: sbatch: error: Batch job submission failed: no such partition$"):
        slurm.submit(config, plan.stages, Manifest(config.output))
    assert list(Manifest(config.output).jobs.values()) == ["100", "101"]


def test_jobs_that_wait_or_run_are_known_by_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    (tmp_path / "queue").write_text("7 RUNNING\n8 PENDING\n99 RUNNING\n")
    found = slurm.jobs_under_way({"a": "6", "b": "7", "c": "8"})
    assert found == {"b": ("7", "RUNNING"), "c": ("8", "PENDING")}
    assert slurm.jobs_under_way({}) == {}


def test_without_slurm_the_message_says_where_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"squeue: not found; launch\.launcher is slurm, so run this where jobs are submitted"):
        slurm.jobs_under_way({"a": "1"})


def test_parallel_stages_run_on_all_nodes_of_their_job_and_others_on_the_first(rounds: tuple[Config, Plan]) -> None:
    stages = {stage.name: stage for stage in rounds[1].stages}
    train = slurm.launch_in_job(stages["a/train"])
    assert stages["a/train"].command[:4] == ("torchrun", "--nnodes=2", "--nproc-per-node=4", "pretrain_longpo.py")
    assert train.words[:5] == ["bash", slurm.ON_NODES, sys.executable, "--nproc-per-node=4", "pretrain_longpo.py"]
    assert train.takes_warning
    precompute = slurm.launch_in_job(stages["a/precompute"])
    assert precompute.words[:4] == ["bash", slurm.ON_NODES, sys.executable, "--nproc-per-node=4"]
    assert not precompute.takes_warning, "it is ended, and goes on where it was"
    assert slurm.launch_in_job(stages["a/generate"]).words[:2] == [sys.executable, "tools/generate_preference_data.py"]
