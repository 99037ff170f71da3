"""Chains of commands, several at a time; what is done stays done."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.progress import progress_bar


@dataclasses.dataclass(frozen=True)
class Task:
    """A command of the product, or of this folder.

    Attributes:
        name: unique; also of its log and its stamp.
        command: ``python`` and ``torchrun`` are those of this environment.
        sources: files of code that decide what the command makes, beside the product's own.
        progress: folder from which the command goes on; emptied when something before or in the task has changed.
        always: run it again though it was done: it knows by itself what is left to do.
    """

    name: str
    command: tuple[str, ...]
    sources: tuple[Path, ...] = ()
    progress: Path | None = None
    always: bool = False


class Pool:
    """Runs chains of tasks.

    A task is done when its stamp has its command, the hash of its sources, and the same of all that came before it in its chain.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        """Keep stamps and logs under ``folder``; run ``workers`` chains at a time."""
        self.folder = folder
        self.workers = workers
        self.stopped = threading.Event()

    def run(self, title: str, chains: Sequence[Sequence[Task]]) -> None:
        """Run every chain to its end.

        Raises:
            UserError: a command failed; chains that are under way end after their present task.
        """
        total = sum(map(len, chains))
        with progress_bar(total=total, desc=title, unit="task") as bar:
            with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
                futures = [pool.submit(self._run_chain, chain, bar) for chain in chains]
                try:
                    for future in concurrent.futures.as_completed(futures):
                        future.result()
                except BaseException:
                    self.stopped.set()
                    for future in futures:
                        future.cancel()
                    raise

    def _run_chain(self, chain: Sequence[Task], bar) -> None:  # type: ignore[no-untyped-def]
        key = ""
        for task in chain:
            if self.stopped.is_set():
                return
            sources = [hashlib.sha256(path.read_bytes()).hexdigest() for path in task.sources]
            key = hashlib.sha256("\0".join([key, *task.command, *sources]).encode()).hexdigest()
            stamp = self.folder / "stamps" / f"{task.name}.json"
            if task.always or not (stamp.exists() and json.loads(stamp.read_text())["key"] == key):
                stamp.parent.mkdir(parents=True, exist_ok=True)
                begun = stamp.with_suffix(".begun")
                if task.progress and (not begun.exists() or begun.read_text() != key):
                    shutil.rmtree(task.progress, ignore_errors=True)
                    begun.write_text(key)
                seconds = self._run_task(task)
                partial = stamp.with_suffix(".partial")
                partial.write_text(json.dumps({"key": key, "seconds": seconds, "command": task.command}))
                partial.replace(stamp)
            bar.update()

    def _run_task(self, task: Task) -> float:
        programs = {"python": (sys.executable,), "torchrun": (sys.executable, "-m", "torch.distributed.run", "--standalone")}
        log = self.folder / "logs" / f"{task.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        settings = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
        started = time.monotonic()
        with log.open("w") as output:
            done = subprocess.run(
                [*programs[task.command[0]], *task.command[1:]],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **settings},
            )
        if done.returncode:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise UserError(f"{task.name} failed: {last} (all of it: {log}). Running the study again goes on here")
        return round(time.monotonic() - started, 1)
