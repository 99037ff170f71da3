"""The training sbatch on a real Slurm of two nodes: four ranks, a warning in the middle, the queue again, the end."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.hf_models import make_hf_model
from tests.support.make_data import make_dataset
from tests.support.scripted_generation import OpenAIServer, make_document
from tests.support.slurm import Job, why_not

ROOT = Path(__file__).parents[2]
TRAIN_ITERS = 40

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

TRAIN = """\
#!/usr/bin/env bash
set -euo pipefail
DATA_ARGS=(--pretrained-checkpoint {folder}/native --data-path {folder}/pairs --reference live)
TRAINING_ARGS=(--context-parallel-size 2 --train-iters {iterations} --global-batch-size 2 --lr 1e-3)
OUTPUT_ARGS=(--save {folder}/run --load {folder}/run)
ARGS=("${{DATA_ARGS[@]}}" "${{TRAINING_ARGS[@]}}" "${{OUTPUT_ARGS[@]}}")
exec torchrun $TORCHRUN_ARGS --nproc-per-node 2 pretrain_longpo.py "${{ARGS[@]}}" "$@"
"""


@pytest.fixture(scope="module")
def train_script(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    make_hf_model(folder / "hf", num_hidden_layers=2)
    subprocess.run(
        [sys.executable, "checkpoint_conversion/hf_to_mcore.py", "--hf", folder / "hf", "--save", folder / "native"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    make_dataset(folder / "pairs", num_documents=6, num_words=30, tokenizer=folder / "hf")
    script = folder / "train.sh"
    script.write_text(TRAIN.format(folder=folder, iterations=TRAIN_ITERS), encoding="utf-8")
    return script


def iterations(folder: Path) -> list[int]:
    path = folder / "run" / "metrics.jsonl"
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_iteration(folder: Path, iteration: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while iteration not in iterations(folder):
        assert time.monotonic() < deadline, f"iteration {iteration} was not reached in {seconds} s"
        time.sleep(0.2)


def logs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.glob("longpo-*.log"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_warned_job_saves_goes_back_to_the_queue_and_resumes_to_the_end(cluster, train_script):
    folder = train_script.parent
    output = f"--output={folder}/longpo-%j.log"
    job_id = cluster.submit("--nodes=2", output, "examples/slurm/train.sbatch", str(train_script), cwd=ROOT)
    try:
        wait_for_iteration(folder, 2, seconds=180)
        cluster.run("scancel", "--signal=USR1", "--batch", str(job_id))  # as Slurm does before the time limit
        job = cluster.wait(job_id, "PENDING", "COMPLETED", "FAILED", seconds=120)
        assert (job.state, job.restarts) == ("PENDING", 1), logs(folder)
        reached = len(iterations(folder))
        assert 2 <= reached < TRAIN_ITERS
        assert (folder / "run" / "latest_checkpointed_iteration.txt").read_text().strip() == str(reached)

        cluster.run("scontrol", "update", f"JobId={job_id}", "StartTime=now")  # a requeued job waits two minutes otherwise
        job = cluster.wait(job_id, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", seconds=240)
    except (TimeoutError, AssertionError):
        print(logs(folder))
        raise
    assert job == Job("COMPLETED", restarts=1, exit_code="0:0"), logs(folder)
    assert iterations(folder) == list(range(1, TRAIN_ITERS + 1))
    assert f"resuming after iteration {reached}" in logs(folder)
    assert "cp 2 pp 1 dp 2" in logs(folder), "four ranks over two nodes made one run"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tasks_of_an_array_share_the_documents_and_merge_to_one_file(cluster, tmp_path):
    books, model = tmp_path / "books", make_hf_model(tmp_path / "model")
    books.mkdir()
    for number in range(5):
        (books / f"book{number}.txt").write_text(make_document(f"book{number}").text)
    lengths = ["--min-document-tokens", "1", "--min-chunk-tokens", "80", "--max-chunk-tokens", "200", "--max-new-tokens", "80"]
    lengths += ["--max-question-tokens", "80", "--num-turns", "2"]
    generate = [sys.executable, "tools/generate_preference_data.py", "--input", str(books), "--output"]
    with OpenAIServer() as server:
        by_server = ["--tokenizer-model", str(model), "--seq-length", "3000", "--server", server.url, *lengths]
        subprocess.run([*generate, tmp_path / "whole.jsonl", *by_server], cwd=ROOT, check=True, capture_output=True)
        job_id = cluster.submit(
            *("--array=0-1", "--cpus-per-task=1", f"--output={tmp_path}/%a.log", "examples/slurm/generate.sbatch"),
            *(str(books), f"{tmp_path}/pairs.jsonl", str(model), "3000", server.url, *lengths),
            cwd=ROOT,
        )
        for task in range(2):
            job = cluster.wait(f"{job_id}_{task}", "COMPLETED", "FAILED", "CANCELLED", seconds=120)
            assert job.state == "COMPLETED", (tmp_path / f"{task}.log").read_text()
    merged = [*generate, tmp_path / "pairs.jsonl", "--merge", "2"]
    subprocess.run(merged, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.timeout(300)
def test_a_job_whose_training_fails_fails_and_is_not_queued_again(cluster, train_script):
    folder = train_script.parent
    output = f"--output={folder}/failing-%j.log"
    flags = ["--global-batch-size", "3"]  # two replicas cannot share three pairs
    job_id = cluster.submit("--nodes=2", output, "examples/slurm/train.sbatch", str(train_script), *flags, cwd=ROOT)
    job = cluster.wait(job_id, "COMPLETED", "FAILED", "CANCELLED", seconds=120)
    assert (job.state, job.restarts) == ("FAILED", 0)
    assert "--global-batch-size 3 is not a multiple" in (folder / f"failing-{job_id}.log").read_text()
