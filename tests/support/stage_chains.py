"""Chains of tiny stages, to run in a test or in a process of their own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_longpo.evolution.runner import Chain, only_run, run_chain
from megatron_longpo.evolution.stages import Artifact, Stage

WRITE = 'echo "$0" >> "$1"; out=$2; word=$3; shift 3; { cat "$@" /dev/null; echo "$word"; } > "$out"'
"""A stage in sh: notes its name in a log, and writes its inputs and a word of its own."""
COUNT = 'echo "$0" >> "$1"; out=$2; word=$3; shift 3; cat "$@" /dev/null | grep -c . > "$out"; exit 0'
"""The same, but what it writes is the number of lines: another content of as many lines gives the same."""


def write_stage(folder: Path, name: str, word: str, inputs: Sequence[Path] = (), *, counts: bool = False) -> Stage:
    """A stage that writes ``folder/NAME.txt``."""
    output = folder / f"{name}.txt"
    words = (name, str(folder / "log"), str(output), word, *map(str, inputs))
    return Stage(
        name=name,
        title=f"write {word}",
        command=("sh", "-c", COUNT if counts else WRITE, *words),
        inputs=tuple(map(Artifact, inputs)),
        outputs=(Artifact(output),),
    )


def run(stages: Sequence[Stage], folder: Path, only: str | None = None) -> dict[str, float]:
    """Run a chain as the commands do."""
    with only_run(folder):
        return run_chain(Chain(stages=stages, folder=folder), only)


def started(folder: Path) -> list[str]:
    """Names of the stages that were started, in order; the log is emptied."""
    log = folder / "log"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


RUN = """
import json, sys
from pathlib import Path
from megatron_longpo.evolution.stages import Artifact, Stage
from tests.support.stage_chains import run
stages = [
    Stage(name=one["name"], title="", command=tuple(one["command"]), inputs=tuple(Artifact(Path(path)) for path in one["inputs"]),
          outputs=tuple(Artifact(Path(path)) for path in one["outputs"]))
    for one in json.loads(sys.argv[2])
]
run(stages, Path(sys.argv[1]))
"""


def start(stages: Sequence[Stage], folder: Path, root: Path, *, start_new_session: bool = False) -> subprocess.Popen[bytes]:
    """Run a chain in a process of its own, whose messages go to ``folder/messages``."""
    described = [
        {
            **dataclasses.asdict(dataclasses.replace(stage, environment={}, how=frozenset())),
            "inputs": [str(artifact.path) for artifact in stage.inputs],
            "outputs": [str(artifact.path) for artifact in stage.outputs],
            "how": [],
        }
        for stage in stages
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "messages").open("ab") as messages:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder), json.dumps(described)],
            cwd=root,
            stdout=messages,
            stderr=messages,
            start_new_session=start_new_session,
        )
