"""What the manifest and the disk say of a stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from megatron_longpo.evolution.hashing import Hasher
from megatron_longpo.evolution.manifest import Record
from megatron_longpo.evolution.stages import Stage
from megatron_longpo.utils.files import read_json

DONE, TO_DO, CHANGED, FAILED, INTERRUPTED = "done", "to do", "changed", "failed", "interrupted"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A stage's state, why it is so, and the hashes of its inputs now."""

    state: str
    reason: str
    inputs: Mapping[str, str | None]


def judge(stage: Stage, record: Record | None, hasher: Hasher) -> Verdict:
    """Compare a stage with its record."""
    inputs = {str(artifact): hasher.digest(artifact) for artifact in stage.inputs}
    if record is None:
        return Verdict(TO_DO, "", inputs)
    if not stage.is_same(record.command):
        return Verdict(CHANGED, "another command", inputs)
    differing = sorted(name for name in {*inputs, *record.inputs} if inputs.get(name) != record.inputs.get(name))
    if differing:
        return Verdict(CHANGED, f"another {differing[0]}", inputs)
    if record.exit_code is None:
        return Verdict(INTERRUPTED, "", inputs)
    if record.exit_code:
        return Verdict(FAILED, f"exit code {record.exit_code}", inputs)
    if record.outputs is None:
        return Verdict(INTERRUPTED, "its outputs were not hashed", inputs)
    outputs = {str(artifact): hasher.digest(artifact) for artifact in stage.outputs}
    differing = sorted(name for name in outputs if outputs[name] != record.outputs.get(name))
    if differing:
        return Verdict(CHANGED, f"another {differing[0]} than it made", inputs)
    return Verdict(DONE, "", inputs)


def says_stop(stage: Stage) -> bool:
    """Whether a stage that is done has decided that the chain ends."""
    return stage.gate is not None and read_json(stage.gate).get("continue") is False
