"""Distributions and samples of a stream, in bounded memory, the same in whatever order it comes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from megatron_longpo.inference.randomness import derive_seed

BITS = 10
"""Values are told apart to this many binary places: exactly below 1024, to a thousandth above."""

FEWEST_BINS, MOST_BINS = 6, 30
"""A histogram has at most twice as many bins as the square root of its values, within these bounds."""


class Distribution:
    """How whole numbers are spread.

    Count, minimum, mean and maximum are exact; the median and the histogram are of values rounded towards zero, to at most a
    thousandth.

    Args:
        unit: what is counted.
        scale: steps of a unit, where fractions of it are counted.
    """

    def __init__(self, unit: str, *, scale: int = 1) -> None:
        """Start empty."""
        self._unit, self._scale = unit, scale
        self._counts: Counter[int] = Counter()
        self._sum = self._minimum = self._maximum = 0

    def add(self, value: float) -> None:
        """Count a value."""
        steps = round(value * self._scale)
        self._minimum = min(self._minimum, steps) if self._counts else steps
        self._maximum = max(self._maximum, steps) if self._counts else steps
        self._sum += steps
        spare = max(0, abs(steps).bit_length() - BITS)
        rounded = abs(steps) >> spare << spare
        self._counts[rounded if steps >= 0 else -rounded] += 1

    def summary(self) -> dict[str, Any] | None:
        """Return count, minimum, mean, median, maximum and a histogram as JSON values; None if nothing was counted.

        Bin ``i`` holds ``counts[i]`` values from ``edges[i]`` up to and without ``edges[i + 1]``.
        """
        if not self._counts:
            return None
        total = self._counts.total()
        edges, counts = self._histogram()
        return {
            "unit": self._unit,
            "count": total,
            "minimum": self._in_units(self._minimum),
            "mean": self._sum / total / self._scale,
            "median": self._in_units(self._median(total)),
            "maximum": self._in_units(self._maximum),
            "edges": [self._in_units(edge) for edge in edges],
            "counts": counts,
        }

    def _in_units(self, steps: int) -> float:
        return steps if self._scale == 1 else steps / self._scale

    def _median(self, total: int) -> int:
        """Return the lower of the middle values."""
        passed = 0
        for value in sorted(self._counts):
            passed += self._counts[value]
            if 2 * passed >= total:
                return value
        raise AssertionError("a count is missing")

    def _histogram(self) -> tuple[list[int], list[int]]:
        """Lay bins of a round width over the values."""
        lowest, highest = min(self._counts), max(self._counts)
        most = min(MOST_BINS, max(FEWEST_BINS, 2 * math.isqrt(self._counts.total())))
        width, factors = 1, (2, 5, 10)
        while (highest // width) - (lowest // width) >= most:
            width = next(power * factor for power in [_power_of_ten(width)] for factor in factors if power * factor > width)
        first = lowest // width
        counts = [0] * (highest // width - first + 1)
        for value, count in self._counts.items():
            counts[value // width - first] += count
        return [(first + place) * width for place in range(len(counts) + 1)], counts


def _power_of_ten(width: int) -> int:
    """Return the power of ten in a width of 1, 2 or 5 times one."""
    return int(10 ** (len(str(width)) - 1))


class Sample:
    """Some of a stream's values, chosen by a hash of their names: neither order nor chance has a part in it.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        """Start empty."""
        self._size = size
        self._drawn: list[tuple[int, str, Any]] = []
        self._limit: int | None = None

    def offer(self, name: tuple[str | int, ...], make: Callable[[], Any]) -> None:
        """Keep a value if its name is among the lowest hashes; only then is it made. It must be JSON."""
        rank = derive_seed(0, *(str(part).encode("utf-8", "backslashreplace").decode() for part in name))
        if self._limit is None or rank <= self._limit:
            value = make()
            self._drawn.append((rank, json.dumps(value, sort_keys=True), value))
            if len(self._drawn) >= 2 * self._size:
                self._settle()

    def values(self) -> list[Any]:
        """Return what was chosen, in the order of the hashes."""
        self._settle()
        return [value for _, _, value in self._drawn]

    def _settle(self) -> None:
        self._drawn = sorted(self._drawn, key=lambda drawn: drawn[:2])[: self._size]
        if len(self._drawn) == self._size:
            self._limit = self._drawn[-1][0]
