"""Results of contests: the table on the console, ``results.json``, and the page docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One row of a contest.

    Attributes:
        contest: its name.
        against: what ours is compared with.
        shape: length or size.
        quantity: what is compared.
        unit: of ``ours`` and ``other``.
        ours: our figure.
        other: the other's.
        ratio: what the target is about.
        target: its bound.
        at_most: whether the ratio must stay below the target, or above.
        details: whatever else was measured.
    """

    contest: str
    against: str
    shape: str
    quantity: str
    unit: str
    ours: float
    other: float
    ratio: float
    target: float
    at_most: bool = True
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target

    def to_json(self) -> dict[str, Any]:
        """With ``met``."""
        return {**dataclasses.asdict(self), "met": self.met}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Result:
        """Inverse of `to_json`."""
        return cls(**{name: value for name, value in values.items() if name != "met"})


COLUMNS = ("contest", "against", "shape", "quantity", "ours", "other", "unit", "ratio", "target", "met")


def _cells(result: Result) -> tuple[str, ...]:
    target = f"{'<=' if result.at_most else '>='} {result.target:.3f}"
    figures = (f"{result.ours:.4g}", f"{result.other:.4g}", result.unit, f"{result.ratio:.3f}", target)
    return (result.contest, result.against, result.shape, result.quantity, *figures, "yes" if result.met else "**no**")


def markdown_table(results: Sequence[Result]) -> str:
    """The results as a table."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *map(_cells, results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def console_table(results: Sequence[Result]) -> str:
    """The same, aligned."""
    rows = [COLUMNS, *(tuple(cell.strip("*") for cell in _cells(result)) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def page(
    results: Sequence[Result], machine: dict[str, str], notes: str, commands: Iterable[str], missing: Sequence[str] = ()
) -> str:
    """Docs page of a run.

    Args:
        results: all rows.
        machine: what it ran on.
        notes: how the figures are taken and what explains those that miss, kept by hand in `benchmarks/NOTES.md`.
        commands: what makes the page.
        missing: contests that the run has not come to yet.
    """
    met = sum(result.met for result in results)
    lines = [
        "# Benchmarks",
        "",
        "Tables: made by these commands from what they measured; do not edit. Text below: `benchmarks/NOTES.md`, kept by hand.",
        "",
        "```bash",
        *commands,
        "```",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in machine.items()),
        "",
        f"{met} of {len(results)} targets are met." + (f" Not measured yet: {', '.join(missing)}." if missing else ""),
        "",
        markdown_table(results),
        "",
        notes.strip(),
        "",
    ]
    return "\n".join(lines)
