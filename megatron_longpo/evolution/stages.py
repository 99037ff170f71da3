"""A stage: one command, with what it reads and what it leaves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """What of a file or folder counts, where not everything does.

    Attributes:
        name: in the manifest, behind the path.
        files: the files of a folder that count; none: the folder is not whole.
        without: names of a JSON object that do not count, such as times.
    """

    name: str
    files: Callable[[Path], Iterable[Path]] | None = None
    without: tuple[str, ...] = ()


def all_files(folder: Path) -> list[Path]:
    """Every file of a folder and of its folders, links followed, in the order of their names."""
    return sorted(Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)


def _native_files(folder: Path) -> list[Path]:
    """Weights and record of the checkpoint that the tracker names. Its index and settings have times and paths in them."""
    tracker = folder / TRACKER
    if not tracker.exists():
        return []
    name = tracker.read_text(encoding="utf-8").strip()
    newest = folder / (f"iter_{int(name):07d}" if name.isdigit() else name)
    if not (newest / ".metadata").exists():
        return []
    return [tracker, *sorted(newest.glob("*.distcp")), *sorted(newest.glob("longpo_model.json")), *all_files(folder / "hf")]


def _exported_files(folder: Path) -> list[Path]:
    """All but the notes on where an export came from and when."""
    return [path for path in all_files(folder) if path.name not in ("README.md", "longpo_export.json")]


def _tokenizer_files(folder: Path) -> list[Path]:
    return [path for path in _exported_files(folder) if path.suffix not in (".safetensors", ".bin", ".pt", ".gguf")]


NATIVE = View(name="newest checkpoint", files=_native_files)
EXPORTED = View(name="model", files=_exported_files)
TOKENIZER = View(name="tokenizer", files=_tokenizer_files)
SCORES = View(name="scores", without=("run",))


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A file or folder whose content matters, or, with a view, a part of it."""

    path: Path
    view: View | None = None

    def __str__(self) -> str:
        """Its name in the manifest."""
        return f"{self.path} ({self.view.name})" if self.view else str(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One command.

    Attributes:
        name: unique, such as ``128k/train``.
        kind: what it does, such as ``train``.
        title: the same for a reader.
        command: program and arguments; ``python`` (also ``python3``, ``python3.11``) and ``torchrun`` are those of this
            environment.
        inputs: what it reads.
        outputs: what it makes.
        leftovers: patterns, from the current folder, of everything that it writes: removed before the stage starts from scratch.
        how: flags that say how the work is done, not what comes out; a change of their values changes nothing.
        saves: on USR1 it saves what it has, and exits.
        gate: a JSON file that it writes; where its ``continue`` is false, what follows is skipped.
        environment: variables of its process, unless they are set already.
    """

    name: str
    title: str
    command: tuple[str, ...]
    kind: str = ""
    inputs: tuple[Artifact, ...] = ()
    outputs: tuple[Artifact, ...]
    leftovers: tuple[str, ...] = ()
    how: frozenset[str] = frozenset()
    saves: bool = False
    gate: Path | None = None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def is_same(self, command: Sequence[str]) -> bool:
        """Whether another command would make the same."""
        return self._matter(command) == self._matter(self.command)

    def _matter(self, command: Sequence[str]) -> list[str]:
        """The words of a command, without the flags of `how` and their values; torchrun is Python in several processes."""
        program = "python" if command[0] == "torchrun" else command[0]
        kept, skipping = [program], False
        for word in command[1:]:
            flag, equals, _ = word.partition("=")
            if word.startswith("--"):
                skipping = flag in self.how
                if not skipping:
                    kept.append(word)
                elif equals:
                    skipping = False
            elif not skipping:
                kept.append(word)
        return kept
