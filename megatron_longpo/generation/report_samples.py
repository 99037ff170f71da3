"""Turns to read: chosen on the left, rejected on the right, with the question and the chunk above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_longpo.pages.markup import Html, element


def show_samples(samples: Sequence[Mapping[str, Any]], turns: int) -> list[Html]:
    """Show kept turns."""
    if not samples:
        return []
    return [
        element("h2", "Samples"),
        element("p", f"{len(samples):,} of {turns:,} turns, chosen by a hash of their documents' ids.", class_="soft"),
        *(element("article", *_kept(sample), class_="card sample") for sample in samples),
    ]


def show_dropped_samples(samples: Sequence[Mapping[str, Any]], turns: int) -> list[Html]:
    """Show dropped turns with their reasons."""
    if not samples:
        return []
    return [
        element("h2", "Dropped turns"),
        element("p", f"{len(samples):,} of {turns:,} dropped turns, each reason in turn.", class_="soft"),
        *(element("article", *_dropped(sample), class_="card sample") for sample in samples),
    ]


def _kept(sample: Mapping[str, Any]) -> list[Html | None]:
    tags = [_place(sample)]
    answers, better, margin = (sample.get(name) for name in ("verified_chosen", "verified_better", "logprob_margin"))
    if answers is not None:
        tags.append("verifier: chosen answers" if answers else "verifier: chosen does not answer")
    if better is not None:
        tags.append("verifier: chosen is better" if better else "verifier: rejected is better")
    if margin is not None:
        tags.append(f"margin {margin:+.1f} nats")
    excerpt = element("blockquote", sample["excerpt"], class_="text excerpt", dir="auto")
    return [_tags(tags), _question(sample), excerpt, _sides(sample)]


def _dropped(sample: Mapping[str, Any]) -> list[Html | None]:
    return [_tags([sample["reason"], f"step: {sample['step']}", _place(sample)]), _question(sample), _sides(sample)]


def _place(sample: Mapping[str, Any]) -> str:
    chunk = sample.get("chunk_id")
    return sample["document_id"] + ("" if chunk is None else f", chunk {chunk}")


def _tags(tags: Sequence[str]) -> Html:
    return element("div", *(element("bdi", tag, class_="tag") for tag in tags), class_="tags")


def _question(sample: Mapping[str, Any]) -> Html | None:
    question = sample["question"]
    return None if question is None else element("p", question, class_="text question", dir="auto")


def _sides(sample: Mapping[str, Any]) -> Html | None:
    sides = [side for side in ("chosen", "rejected") if sample[side] is not None]
    shown = [_side(side, sample[side], sample.get(f"tokens_{side}")) for side in sides]
    return element("div", *shown, class_="sides") if shown else None


def _side(side: str, text: str, tokens: int | None) -> Html:
    length = None if tokens is None else element("span", f" {tokens:,} tokens")
    return element("section", element("h4", side, length), element("div", text, class_="text", dir="auto"), class_=f"side {side}")
