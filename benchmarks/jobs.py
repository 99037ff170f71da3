"""Measurements in fresh processes, kept as JSON files so that a run that was cut short goes on where it stopped.

A job is a function of this package, named by its module path, with JSON arguments and a JSON result. It runs in processes of
its own, one a rank: nothing that ran before is in their memory, their threads or their allocator.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from megatron_longpo.utils.errors import UserError, run_command

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to run.

    Attributes:
        name: of the kept file.
        function: ``package.module:function``.
        arguments: what it is called with.
        ranks: processes, joined as torchrun would.
        threads: of each process.
        environment: further variables.
    """

    name: str
    function: str
    arguments: dict[str, Any]
    ranks: int = 1
    threads: int = 1
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def keep_freed_memory_out() -> dict[str, str]:
    """Variables under which glibc gives freed tensors back at once, so that resident memory is memory in use."""
    return {"MALLOC_MMAP_THRESHOLD_": "262144"}


def reuse_freed_memory() -> dict[str, str]:
    """Variables under which glibc keeps freed tensors for the next ones, so that times hold no page faults of the allocator."""
    return {"MALLOC_MMAP_THRESHOLD_": str(1 << 40), "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}


@functools.cache
def hash_code() -> str:
    """Fingerprint of what is measured and what measures it: a figure of other code is not this code's."""
    digest = hashlib.sha256()
    for folder in ("megatron_longpo", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


class Bench:
    """Where the models and results of a run of contests lie, and what is redone."""

    def __init__(self, folder: Path, *, force: bool = False, timeout: float = 3600.0) -> None:
        """Take the folder; ``force`` measures again what is there already."""
        self.folder, self.force, self.timeout = folder, force, timeout
        self._measured: dict[str, list[Any]] = {}

    @property
    def models(self) -> Path:
        """Where models are made."""
        return self.folder / "models"

    def run(self, job: Job) -> list[Any]:
        """The results of the job's ranks: kept ones of the same job and the same code, or measured now.

        Raises:
            UserError: if a rank fails.
        """
        if job.name in self._measured:
            return self._measured[job.name]
        kept = self.folder / "measurements" / f"{job.name}.json"
        described = json.loads(json.dumps(dataclasses.asdict(job)))
        if kept.exists() and not self.force:
            found = json.loads(kept.read_text(encoding="utf-8"))
            if found["job"] == described and found.get("code") == hash_code():
                self._measured[job.name] = found["results"]
                return self._measured[job.name]
        started = time.monotonic()
        print(f"measuring {job.name} ...", end="", file=sys.stderr, flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        results = self._measured[job.name] = _run_ranks(job, kept, self.timeout)
        write_json(kept, {"job": described, "code": hash_code(), "results": results})
        print(f" {time.monotonic() - started:.0f} s", file=sys.stderr)
        return results


def write_json(path: Path, content: Any) -> None:
    """Write a file that is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _environment(job: Job, rank: int, port: int) -> dict[str, str]:
    threads = str(job.threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",  # a thread that waits for work does not spin: CPU time is work
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        **job.environment,
    }
    if job.ranks > 1:
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(job.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
        }
    return environment


def _run_ranks(job: Job, kept: Path, timeout: float) -> list[Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, outputs = [], []
    for rank in range(job.ranks):
        outputs.append(kept.with_suffix(f".rank{rank}"))
        outputs[-1].unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.jobs", job.function, json.dumps(job.arguments), str(outputs[-1])]
        with kept.with_suffix(f".rank{rank}.log").open("w", encoding="utf-8") as log:
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=_environment(job, rank, port), stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        _wait(job, processes, kept, timeout)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    results = [json.loads(output.read_text(encoding="utf-8")) for output in outputs]
    for rank, output in enumerate(outputs):
        output.unlink()
        kept.with_suffix(f".rank{rank}.log").unlink()
    return results


def _wait(job: Job, processes: list[subprocess.Popen[bytes]], kept: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    running = dict(enumerate(processes))
    while running:
        for rank, process in list(running.items()):
            code = process.poll()
            if code == 0:
                del running[rank]
            elif code is not None:
                log = kept.with_suffix(f".rank{rank}.log")
                raise UserError(f"{job.name}: rank {rank} ended with {code}; its output is {log}")
        if time.monotonic() > deadline:
            raise UserError(f"{job.name}: not done after {timeout:.0f} s")
        time.sleep(0.05)


def main() -> None:
    """Run one rank of a job: ``FUNCTION ARGUMENTS OUTPUT``."""
    function, arguments, output = sys.argv[1:]
    module, name = function.split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    write_json(Path(output), result)


if __name__ == "__main__":
    run_command(main)
