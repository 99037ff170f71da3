"""What the file says: a model, rounds, the flags of each stage, when to stop, where it runs.

Paths in the file are relative to the root of the repository, from which every command runs; so a value stands in the commands
as it stands in the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from megatron_longpo.evolution.yaml_file import read_yaml
from megatron_longpo.utils.errors import UserError

BASE = "base"
"""The name of the model that everything starts from, where a round's name can stand."""
WITH_FLAGS = ("generate", "preprocess", "precompute", "train", "export", "evaluate")
"""Stages of a round whose commands take flags from the file."""
KINDS = ("model", "convert", "documents", *WITH_FLAGS, "decide")
"""What a stage can be."""
LAUNCHERS = ("local", "slurm")

OUR_OPTIONS = ("dependency", "kill-on-invalid-dep", "job-name", "output", "parsable")
"""Options of sbatch that the loop gives itself."""
NOT_NAMES = ("evaluation", "logs")
"""Folders beside those of the rounds."""

Flags = Mapping[str, str | list[str] | None]
"""Flags by their names without dashes: the value as it is written, or several; None: as if it were not there."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Something that lies at a path, and the command that makes it, if it is made.

    Attributes:
        path: where.
        command: its words; none: it is there.
        inputs: what the command reads, beside its script.
        also: what it makes beside that.
    """

    path: str
    command: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One round.

    Attributes:
        name: unique.
        seq_length: tokens of the longer side of a pair.
        rotary_base: RoPE base of the policy, as it is written; None: that of the model that it starts from.
        documents: long documents.
        generator: who writes the pairs: ``base`` or an earlier round.
        start: whose weights training starts from.
        reference: who is the reference.
        flags: by stage.
    """

    name: str
    seq_length: int
    rotary_base: str | None
    documents: Source
    generator: str
    start: str
    reference: str
    flags: Mapping[str, Flags]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StopRule:
    """When the rounds end before the last.

    Attributes:
        short: names of scores whose mean is the short-context score.
        max_short_loss: most points that it may be below that of the base.
        long: names of scores whose mean, at a round's length, is the long-context score.
        min_long_gain: least points that it must be above that of the round before.
    """

    short: tuple[str, ...] = ()
    max_short_loss: float = 1.0
    long: tuple[str, ...] = ()
    min_long_gain: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """Where commands run.

    Attributes:
        launcher: here, or each stage in a Slurm job.
        processes: of the commands that work in parallel, on each node.
        slurm: sbatch's options by stage kind; ``defaults`` are those of all.
    """

    launcher: str = "local"
    processes: int = 1
    slurm: Mapping[str, Flags] = dataclasses.field(default_factory=dict)

    def options(self, kind: str) -> Flags:
        """Options of sbatch for a kind of stage."""
        return {**self.slurm.get("defaults", {}), **self.slurm.get(kind, {})}

    def nodes(self, kind: str) -> int:
        """Nodes of a kind of stage."""
        return int(str(self.options(kind).get("nodes", 1))) if self.launcher == "slurm" else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The whole file."""

    path: Path
    output: Path
    model: Source
    rounds: tuple[Round, ...]
    stop: StopRule
    launch: Launch


class _Mapping:
    """A mapping of the file, taken apart field by field; what is left over in the end is unknown."""

    def __init__(self, file: Path, place: str, content: Any) -> None:
        self.file, self.place = file, place
        if not isinstance(content, dict):
            raise self.wrong("", "expected names with values")
        self.left = {name: None if value in ("", "null", "~") else value for name, value in content.items()}
        self._known: list[str] = []

    def wrong(self, name: str, problem: str) -> UserError:
        """An error that names the file and the field."""
        return UserError(f"{self.file}: {self.place_of(name) or 'the file'}: {problem}")

    def place_of(self, name: str) -> str:
        return ".".join(part for part in (self.place, name) if part)

    def take(self, name: str) -> Any:
        self._known.append(name)
        return self.left.pop(name, None)

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "expected one value")
        return default if value is None else value

    def needed(self, name: str, example: str) -> str:
        value = self.text(name)
        if value is None:
            raise self.wrong(name, f"is missing; for example {example}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.take(name)
        values = [value] if isinstance(value, str) else value or []
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            raise self.wrong(name, "expected a value or a list of values")
        return tuple(values)

    def number(self, name: str, text: str | None, kind: type = float, least: float = float("-inf")) -> Any:
        """Read a number that was taken as a text."""
        try:
            value = kind(text)
        except (TypeError, ValueError):
            raise self.wrong(name, f"{text!r} is not a {'whole ' if kind is int else ''}number") from None
        if not least <= value < float("inf"):
            raise self.wrong(name, f"{text} must be at least {least:g}")
        return value

    def mapping(self, name: str) -> _Mapping:
        content = self.take(name)
        return _Mapping(self.file, self.place_of(name), {} if content is None else content)

    def flags(self, name: str) -> dict[str, str | list[str] | None]:
        inner = self.mapping(name)
        for flag, value in inner.left.items():
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(one, str) for one in values) and value is not None:
                raise inner.wrong(flag, "expected a value or a list of values")
        return inner.left

    def end(self) -> None:
        """Refuse what was not taken."""
        for name in self.left:
            raise self.wrong(name, f"unknown{_hint(name, self._known)}")


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def read_config(path: Path) -> Config:
    """Read a file.

    Raises:
        UserError: it cannot be read, or something in it is unknown, missing or of the wrong kind.
    """
    file = _Mapping(path, "", read_yaml(path))
    output = Path(file.needed("output", "runs/mistral"))
    model = _source(file, "model", "models/Mistral-7B-Instruct-v0.2")
    launch = _launch(file.mapping("launch"))
    defaults = file.mapping("defaults")
    flags = {kind: defaults.flags(kind) for kind in WITH_FLAGS}
    defaults.end()
    stop = _stop(file.mapping("stop"))
    given = file.take("rounds")
    file.end()
    if not isinstance(given, list) or not given:
        raise file.wrong("rounds", "expected a list of rounds")
    rounds: list[Round] = []
    for number, content in enumerate(given):
        rounds.append(_round(_Mapping(path, f"rounds[{number}]", content), rounds, flags))
    return Config(path=path, output=output, model=model, rounds=tuple(rounds), stop=stop, launch=launch)


def _source(mapping: _Mapping, name: str, example: str) -> Source:
    value = mapping.take(name)
    if isinstance(value, str):
        return Source(value)
    if value is None:
        raise mapping.wrong(name, f"is missing; for example {example}")
    inner = _Mapping(mapping.file, mapping.place_of(name), value)
    path, command = inner.needed("output", example), inner.take("command")
    words = shlex.split(command) if isinstance(command, str) else command
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise inner.wrong("command", "expected a command, as one line or as a list of words")
    source = Source(path, tuple(words), inputs=inner.texts("inputs"), also=inner.texts("also"))
    inner.end()
    return source


def _launch(mapping: _Mapping) -> Launch:
    launcher = mapping.text("launcher", "local")
    if launcher not in LAUNCHERS:
        raise mapping.wrong("launcher", f"{launcher!r} is none of {', '.join(LAUNCHERS)}")
    processes = mapping.number("processes", mapping.text("processes", "1"), int, least=1)
    slurm = mapping.mapping("slurm")
    options = {name: slurm.flags(name) for name in ("defaults", *KINDS)}
    slurm.end()
    mapping.end()
    for kind, some in options.items():
        for option in some:
            if option in OUR_OPTIONS:
                raise slurm.wrong(f"{kind}.{option}", "is set by the loop")
        if not str(some.get("nodes", 1)).isdigit():
            raise slurm.wrong(f"{kind}.nodes", "expected a whole number")
    return Launch(launcher=launcher, processes=processes, slurm=options)


def _stop(mapping: _Mapping) -> StopRule:
    short, long = mapping.texts("short"), mapping.texts("long")
    loss = mapping.number("max-short-loss", mapping.text("max-short-loss", "1.0"), least=0)
    gain = mapping.number("min-long-gain", mapping.text("min-long-gain", "0.0"))
    mapping.end()
    return StopRule(short=short, max_short_loss=loss, long=long, min_long_gain=gain)


def _round(mapping: _Mapping, earlier: list[Round], defaults: Mapping[str, Flags]) -> Round:
    name = mapping.needed("name", "128k")
    names = [BASE, *(one.name for one in earlier)]
    if not re.fullmatch(r"\w[\w.-]*", name) or name in NOT_NAMES:
        raise mapping.wrong("name", f"{name!r} cannot name a folder of a round; take letters, digits and . _ -")
    if name in names:
        raise mapping.wrong("name", f"{name!r} is taken; there are {', '.join(names)}")
    roles: dict[str, str] = {}
    for role in ("generator", "start", "reference"):
        roles[role] = mapping.text(role) or names[-1]
        if roles[role] not in names:
            raise mapping.wrong(role, f"{roles[role]!r} is none of {', '.join(names)}, which are there before this round")
    rotary_base = mapping.text("rotary-base")
    if rotary_base is not None:
        mapping.number("rotary-base", rotary_base, least=1)
    one = Round(
        name=name,
        seq_length=mapping.number("seq-length", mapping.needed("seq-length", "131072"), int, least=1),
        rotary_base=rotary_base,
        documents=_source(mapping, "documents", "documents.jsonl"),
        flags={kind: {**defaults[kind], **mapping.flags(kind)} for kind in WITH_FLAGS},
        **roles,
    )
    mapping.end()
    return one
