"""The table tells what was done, what must be done, and why."""

from __future__ import annotations

import fcntl
import json

import pytest

from megatron_longpo.evolution.stages import Artifact, Stage
from megatron_longpo.evolution.status import list_states
from megatron_longpo.utils.errors import UserError
from tests.support.stage_chains import run, write_stage


def states(stages, folder):
    return [(row.state, row.reason) for row in list_states(stages, folder)]


def chain(folder, *words):
    made = []
    for number, word in enumerate(words):
        made.append(write_stage(folder, f"s{number}", word, [made[-1].outputs[0].path] if made else []))
    return made


def test_states_follow_the_manifest_and_the_disk(tmp_path, capfd):
    stages = chain(tmp_path, "a", "b", "c")
    assert states(stages, tmp_path) == [("to do", "")] * 3
    run(stages, tmp_path, only="s0")
    assert states(stages, tmp_path) == [("done", ""), ("to do", ""), ("to do", "")]
    run(stages, tmp_path)
    assert states(stages, tmp_path) == [("done", "")] * 3
    changed = chain(tmp_path, "a", "B", "c")
    assert states(changed, tmp_path) == [("done", ""), ("changed", "another command"), ("waits", "for s1")]
    (tmp_path / "s1.txt").write_text("damaged")
    assert states(stages, tmp_path)[1] == ("changed", f"another {tmp_path}/s1.txt than it made")
    rows = list_states(stages, tmp_path)
    assert (rows[0].attempts, rows[0].start[:2]) == ("1", "20")


def test_a_failure_and_an_interruption_are_told_apart(tmp_path, capfd):
    stage = Stage(name="s", title="", command=("false",), outputs=(Artifact(tmp_path / "x"),))
    with pytest.raises(UserError):
        run([stage], tmp_path)
    assert states([stage], tmp_path) == [("failed", "exit code 1")]
    manifest = tmp_path / "manifest.json"
    content = json.loads(manifest.read_text())
    content["stages"]["s"] |= {"exit_code": None, "seconds": None}
    manifest.write_text(json.dumps(content))
    assert states([stage], tmp_path) == [("interrupted", "")]
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert states([stage], tmp_path) == [("running", "")]


def test_what_follows_a_decision_to_stop_is_skipped(tmp_path, capfd):
    gate = tmp_path / "decision.json"
    code = f"echo '{{\"continue\": false}}' > {gate}"
    decide = Stage(name="decide", title="", command=("sh", "-c", code), outputs=(Artifact(gate),), gate=gate)
    stages = [decide, write_stage(tmp_path, "after", "x")]
    run(stages, tmp_path)
    assert states(stages, tmp_path) == [("done", ""), ("skipped", "the decision is to stop")]
