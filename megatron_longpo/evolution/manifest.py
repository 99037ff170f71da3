"""The manifest of an output folder: what each stage ran, read and left."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import megatron_longpo
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.files import read_json, write_json
from megatron_longpo.utils.versions import installed_versions

MANIFEST = "manifest.json"
VERSION = 1
PACKAGES = ("torch", "megatron-core", "transformers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A stage's last run.

    Attributes:
        command: as in `stages.Stage`.
        inputs: hash of each input, by name, when it started.
        attempts: how often this command was started on these inputs.
        start: when it was started last, UTC.
        versions: of what it ran with.
        exit_code: None while it runs, or where it was killed together with its runner.
        seconds: that the last start took; None as long as that is not known.
        outputs: hash of each output, by name; None until it has succeeded.
    """

    command: tuple[str, ...]
    inputs: Mapping[str, str | None]
    attempts: int
    start: str
    versions: Mapping[str, str]
    exit_code: int | None = None
    seconds: float | None = None
    outputs: Mapping[str, str | None] | None = None


class Manifest:
    """The records of an output folder, on disk after each change."""

    def __init__(self, folder: Path) -> None:
        """Read what is there.

        Raises:
            UserError: it cannot be read.
        """
        self.path = folder / MANIFEST
        try:
            content = read_json(self.path)
            if content.get("version", VERSION) != VERSION:
                raise ValueError(f"it has version {content['version']}; this release reads version {VERSION}")
            self._stages = {name: _record(fields) for name, fields in content.get("stages", {}).items()}
            self.jobs: dict[str, str] = dict(content.get("jobs", {}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}: not a manifest ({error}); remove it to run every stage anew") from None

    def get(self, name: str) -> Record | None:
        """The record of a stage, if it was ever started."""
        return self._stages.get(name)

    def put(self, name: str, record: Record) -> None:
        """Keep a stage's record."""
        self._stages[name] = record
        self.save()

    def submit(self, jobs: Mapping[str, str]) -> None:
        """Keep the Slurm jobs that stages were given to: stage -> job."""
        self.jobs = dict(jobs)
        self.save()

    def save(self) -> None:
        """Write all records."""
        stages = {name: dataclasses.asdict(record) for name, record in self._stages.items()}
        write_json(self.path, {"version": VERSION, "stages": stages, "jobs": self.jobs})


def _record(fields: dict[str, Any]) -> Record:
    return Record(**{**fields, "command": tuple(fields["command"])})


def versions() -> dict[str, str]:
    """What a stage runs with."""
    return {"megatron-longpo": megatron_longpo.__version__, **installed_versions(PACKAGES)}
