"""Counts of what a dataset holds, made part by part and added up."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from megatron_longpo.data import layout
from megatron_longpo.data.pair import PreferencePair


@dataclasses.dataclass
class Tally:
    """Running counts.

    Attributes:
        num_pairs: pairs kept.
        num_turns: turns of all pairs.
        max_turns: of the longest pair.
        max_token_id: the largest id.
        drops: records dropped, by reason.
        lengths: by name: count, minimum, sum and maximum, in tokens.
    """

    num_pairs: int = 0
    num_turns: int = 0
    max_turns: int = 0
    max_token_id: int = 0
    drops: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    lengths: dict[str, tuple[int, int, int, int]] = dataclasses.field(default_factory=dict)

    def add_pair(self, pair: PreferencePair) -> None:
        """Count a pair."""
        self.num_pairs += 1
        self.num_turns += pair.num_turns
        self.max_turns = max(self.max_turns, pair.num_turns)
        self._add_length("shared_prefix", layout.shared_prefix_length(pair.chosen.input_ids, pair.rejected.input_ids))
        sides = {
            "chosen": [pair.chosen],
            "rejected": [pair.rejected],
            "short_chosen": pair.short_chosen,
            "short_rejected": pair.short_rejected,
        }
        for name, group in sides.items():
            for side in group:
                self._add_length(name, len(side.input_ids))
                self.max_token_id = max(self.max_token_id, int(side.input_ids.max()))
        for start, end in (*pair.chosen.answer_spans, *pair.rejected.answer_spans):
            self._add_length("answer", end - start)

    def _add_length(self, name: str, value: int) -> None:
        self._join(name, (1, value, value, value))

    def _join(self, name: str, added: tuple[int, int, int, int]) -> None:
        count, low, total, high = self.lengths.get(name, (0, added[1], 0, added[3]))
        self.lengths[name] = count + added[0], min(low, added[1]), total + added[2], max(high, added[3])

    def add(self, other: Tally) -> None:
        """Count everything that another tally has counted."""
        self.num_pairs += other.num_pairs
        self.num_turns += other.num_turns
        self.max_turns = max(self.max_turns, other.max_turns)
        self.max_token_id = max(self.max_token_id, other.max_token_id)
        self.drops.update(other.drops)
        for name, added in other.lengths.items():
            self._join(name, added)

    def summary(self) -> dict[str, dict[str, float]]:
        """The lengths as the manifest has them."""
        return {
            name: {"count": count, "minimum": low, "mean": round(total / count, 2), "maximum": high}
            for name, (count, low, total, high) in sorted(self.lengths.items())
        }

    def to_json(self) -> dict[str, Any]:
        """The tally as a JSON object."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Tally:
        """The tally of a JSON object."""
        lengths = {name: tuple(values) for name, values in fields["lengths"].items()}
        return cls(**{**fields, "drops": collections.Counter(fields["drops"]), "lengths": lengths})
