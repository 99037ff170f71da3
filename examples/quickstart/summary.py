"""Sum up a quickstart: metrics before and after, a plot over iterations, and where everything lies."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

SHOWN = (
    ("loss", "objective"),
    ("nll_loss", "NLL of the chosen sequence"),
    ("preference_loss", f"preference loss (ln 2 = {math.log(2):.3f})"),
    ("rewards/chosen", "reward of chosen"),
    ("rewards/rejected", "reward of rejected"),
    ("rewards/margins", "margin"),
    ("rewards/accuracies", "accuracy"),
    ("kl/short_to_long", "short-to-long KL estimate"),
)


def summarize(build: Path, seconds: dict[str, float], settings: dict[str, Any]) -> str:
    """Write summary.json and the plot, and return a text for a reader.

    Args:
        build: folder of the quickstart.
        seconds: time of each stage.
        settings: what the training was told, for the record.
    """
    before, after, answer = (json.loads((build / f"{name}.json").read_text()) for name in ("before", "after", "answer"))
    iterations = [json.loads(line) for line in (build / "trained" / "metrics.jsonl").read_text().splitlines()]
    dataset = json.loads((build / "pairs.json").read_text())
    plot = build / "training.png"
    draw(iterations, plot)
    summary = {
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "settings": settings,
        "before": before,
        "after": after,
        "hf_path": str(build / "exported"),
        "plot": str(plot),
        "tensorboard": str(build / "trained" / "tensorboard"),
        "answer": answer["answer"],
        "question": answer,
        "dataset": dataset,
    }
    partial = build / "summary.partial"
    partial.write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, build / "summary.json")
    return _text(build, summary)


def draw(iterations: list[dict[str, Any]], path: Path) -> None:
    """Plot rewards and losses over iterations to a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    rewards, losses = figure.subplots(1, 2)
    steps = [row["iteration"] for row in iterations]
    for name, label in (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"), ("rewards/margins", "margin")):
        rewards.plot(steps, [row[name] for row in iterations], marker="o", label=label)
    rewards.axhline(0, color="grey", linewidth=0.8)
    rewards.set(title="Rewards", xlabel="iteration", ylabel="beta x log-ratio")
    for name, label in (("nll_loss", "NLL"), ("preference_loss", "preference loss"), ("loss", "objective")):
        losses.plot(steps, [row[name] for row in iterations], marker="o", label=label)
    losses.set(title="Losses (one document an iteration)", xlabel="iteration")
    for axes in (rewards, losses):
        axes.legend()
    partial = path.with_name(f"partial-{path.name}")
    figure.savefig(partial, dpi=120)
    os.replace(partial, path)


def _text(build: Path, summary: dict[str, Any]) -> str:
    before, after, question, settings = (summary[name] for name in ("before", "after", "question", "settings"))
    rate, base = settings["learning_rate"], settings["rotary_base"]
    lines = ["", "The same pairs, scored before and after training", f"{'':36}{'before':>10}{'after':>10}"]
    lines += [f"{label:36}{before[name]:10.4f}{after[name]:10.4f}" for name, label in SHOWN]
    lines += [
        "",
        f"{settings['iterations']} iterations, learning rate {rate:g}, RoPE base {base:g}",
        "",
        f"Asked about all of {question['document_id']} ({question['prompt_tokens']} tokens): {question['instruction']}",
        f"  before, from its chunk:      {_one_line(question['before_from_chunk'])}",
        f"  before, from the document:   {_one_line(question['before_from_document'])}",
        f"  trained, from the document:  {_one_line(question['answer'])}",
        "",
        f"trained model  {summary['hf_path']}",
        f"plot           {summary['plot']}",
        f"everything     {build / 'summary.json'}",
        f"TensorBoard    tensorboard --logdir {summary['tensorboard']}",
        f"time           {summary['seconds']['total']:.0f} s in all",
    ]
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())
