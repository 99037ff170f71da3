"""Run a chain of commands once each: echo, time and remember them, and repeat one only when what it depends on has changed."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: what `seconds` in the summary calls it.
        title: what it does, for a reader.
        command: program and arguments; ``python`` and ``torchrun`` are those of this environment.
        outputs: files and folders that it makes; a ``*`` stands for any end of a name.
    """

    name: str
    title: str
    command: tuple[str, ...]
    outputs: tuple[Path, ...]


def run_stages(stages: Sequence[Stage], folder: Path, environment: dict[str, str]) -> dict[str, float]:
    """Run every stage that is not done yet, in order.

    A stage is done when its stamp names the same command, the same Python and the same earlier stages, and its outputs are
    there. When any of these changed, the old outputs are removed first; an interrupted stage is started again over what it has
    left, because the commands go on by themselves.

    Returns:
        The seconds that each stage took when it was run.

    Raises:
        UserError: a command failed, or another process is running stages in this folder.
    """
    stamps = folder / "stamps"
    stamps.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another quickstart is running here; wait for it to end") from None
        return _run_in_order(stages, stamps, environment)


def _run_in_order(stages: Sequence[Stage], stamps: Path, environment: dict[str, str]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    history = hashlib.sha256(f"python {sys.version_info.major}.{sys.version_info.minor}".encode())
    for number, stage in enumerate(stages, start=1):
        history.update("\0".join(stage.command).encode())
        key = history.hexdigest()
        stamp = stamps / f"{stage.name}.json"
        known = _read(stamp)
        print(f"\n[{number}/{len(stages)}] {stage.title}", flush=True)
        print(f"$ {shlex.join(stage.command)}", flush=True)
        if known.get("key") == key and "seconds" in known and all(_matches(output) for output in stage.outputs):
            print(f"(done before, in {known['seconds']:.0f} s)", flush=True)
        else:
            if known.get("key") != key:
                _remove(stage.outputs)
            _write(stamp, {"key": key})
            known = {"key": key, "seconds": _run(stage, environment)}
            _write(stamp, known)
        seconds[stage.name] = known["seconds"]
    return seconds


def _run(stage: Stage, environment: dict[str, str]) -> float:
    programs = {"python": (sys.executable,), "torchrun": (sys.executable, "-m", "torch.distributed.run")}
    command = [*programs[stage.command[0]], *stage.command[1:]]
    start = time.monotonic()
    done = subprocess.run(command, env={**os.environ, **environment})
    seconds = time.monotonic() - start
    if done.returncode:
        raise UserError(
            f"stage {stage.name!r} failed with exit code {done.returncode}; its messages are above. A re-run goes on here"
        )
    missing = [str(output) for output in stage.outputs if not _matches(output)]
    if missing:
        raise UserError(f"stage {stage.name!r} ended without making {missing[0]}")
    print(f"({seconds:.0f} s)", flush=True)
    return round(seconds, 1)


def _matches(output: Path) -> list[Path]:
    return sorted(output.parent.glob(output.name))


def _remove(outputs: Sequence[Path]) -> None:
    for output in outputs:
        for path in _matches(output):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _read(stamp: Path) -> dict[str, Any]:
    return json.loads(stamp.read_text()) if stamp.exists() else {}


def _write(stamp: Path, content: dict[str, Any]) -> None:
    partial = stamp.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    os.replace(partial, stamp)
