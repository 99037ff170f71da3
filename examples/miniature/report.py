"""Results of the study: examples/miniature/results.json, the tables in docs/miniature.md, and the plots beside it.

It takes every condition whose evaluations are there for all of `--seeds`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import arms
from arms import ARMS, CONDITIONS, Condition
from compare_rounds import folder_of, learning_rate
from language import NOTE_WORDS
from study import BUILD, HERE, NAME, REPOSITORY, Seed, scores, skills

from megatron_longpo.utils.errors import UserError, run_command

PAGE = Path("docs/miniature.md")
IMAGES = Path("docs/images")
BEGIN, END = "<!-- tables: written by examples/miniature/report.py -->", "<!-- end of tables -->"
UNTRAINED = ("base", "raised")
MAIN = ("sft", "nll", "dpo", "longpo-no-s2l", "longpo-no-nll", "longpo")
"""Arms of the paper and its ablations; the others are options beyond it."""
COMPARED = (("longpo", "nll"), ("longpo", "longpo-no-s2l"), ("longpo-no-nll", "dpo"), ("longpo", "sft"))
"""What the preference adds to the NLL, what the short reference adds with an NLL and without, and the simplest rival."""
ROUNDS = {"base": ("base", 0), "first round, 4x": ("4x", 40), "second round, 8x": ("8x", 80), "8x at once": ("at-once", 60)}
"""Rows of compare_rounds.py: the name of the model there, and iterations from the base on."""
Measured = Mapping[str, Sequence[Mapping[str, float]]]
"""Scores by method, of each seed."""
LONG, SHORT = f"{arms.CHUNKS}x", "1x"


def measure(seed: Seed, condition: Condition, method: str) -> dict[str, float]:
    """Read a model's scores."""
    folder = "evaluation-raised" if method == "raised" else "evaluation"
    found = scores(seed.place(condition) / folder, method)
    begun = begun_right(seed.place(condition) / folder / method / "samples.jsonl")
    return {"long": found[LONG], "short": found[SHORT], "skills": skills(found), "skills_begun": skills(begun), **found}


def begun_right(samples: Path) -> dict[str, float]:
    """Return the share of answers that begin with the right one, whether they end there or not, in percent by group."""
    counts: dict[str, list[bool]] = {}
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        right = sample["expected"][0].split()
        counts.setdefault(sample["group"], []).append(sample["answer"].split()[: len(right)] == right)
    return {group: 100 * statistics.mean(found) for group, found in counts.items()}


def measure_all(condition: Condition, seeds: Sequence[Seed]) -> dict[str, list[dict[str, float]]]:
    """Read the scores of every method that all seeds have, seed by seed."""
    measured = {}
    for method in (*UNTRAINED, *(arm.name for arm in ARMS)):
        with contextlib.suppress(FileNotFoundError):
            measured[method] = [measure(seed, condition, method) for seed in seeds]
    return measured


def rows_of(condition: Condition, measured: Measured) -> list[dict[str, Any]]:
    """Make the rows of a condition; none if its learning rates are not chosen yet."""
    rates_file = Seed(arms.VALIDATION_SEED).place(condition) / "rates.json"
    if not rates_file.exists():
        return []
    rates, rows = json.loads(rates_file.read_text()), []
    for method, found in measured.items():
        row: dict[str, Any] = {"condition": condition.name, "method": method}
        for name in ("long", "short", "skills", "skills_begun", "2x", "4x", "reverse", "recall"):
            row |= spread_of(name, [one[name] for one in found])
        trained = method not in UNTRAINED
        row |= {"lr": rates[method] if trained else None, "seeds": len(found), "steps": arms.ITERATIONS if trained else 0}
        rows.append(row)
    return rows


def spread_of(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and standard deviation as fields of a row."""
    return {
        name: round(statistics.mean(values), 1),
        f"{name}_sd": round(statistics.stdev(values), 1) if len(values) > 1 else None,
    }


def labels(condition: Condition, seeds: Sequence[Seed]) -> dict[str, float]:
    """Count how many of the pairs' answers are right, in percent: nothing that training knows."""
    right = {"chosen": [0, 0], "rejected": [0, 0]}
    for seed in seeds:
        for line in (seed.place(condition) / "pairs.jsonl").read_text().splitlines():
            for turn in json.loads(line)["turns"]:
                _, scope, key = turn["instruction"].split()
                told = f" {turn['short_context']} ".partition(f" {scope} {key} ")[2].split()
                length = NOTE_WORDS if condition.kind == "notes" else 2
                for side, counts in right.items():
                    counts[0] += turn[side].split() == told[:length]
                    counts[1] += 1
    return {side: round(100 * good / total, 1) for side, (good, total) in right.items()}


def cell(row: Mapping[str, Any], name: str) -> str:
    """Write a mean with its spread."""
    spread = row[f"{name}_sd"]
    return f"{row[name]:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Write rows as Markdown."""
    heads = (
        "method",
        "lr",
        "long (8 chunks)",
        "4 chunks",
        "short (1 chunk)",
        "skills",
        "reverse",
        "recall",
        "skills, begun right",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        rate = "" if row["lr"] is None else f"{row['lr']:g}"
        cells = (cell(row, name) for name in ("long", "4x", "short", "skills", "reverse", "recall", "skills_begun"))
        lines.append(f"| `{row['method']}` | {rate} | {' | '.join(cells)} |")
    return lines


def curves(seeds: Sequence[Seed], condition: Condition, method: str, rate: float, name: str) -> tuple[list[int], list[float]]:
    """Return the mean over seeds of a metric in training, by iteration."""
    arm = next(arm for arm in ARMS if arm.name == method)
    found: dict[int, list[float]] = {}
    for seed in seeds:
        for line in (seed.trained(condition, arm, rate) / "metrics.jsonl").read_text().splitlines():
            metrics = json.loads(line)
            if name == "skills" and f"eval/{NAME}/reverse" in metrics:
                value = skills({skill: metrics[f"eval/{NAME}/{skill}"] for skill in ("reverse", "recall")})
            elif name in metrics:
                value = metrics[name]
            else:
                continue
            found.setdefault(metrics["iteration"], []).append(value)
    return sorted(found), [statistics.mean(found[iteration]) for iteration in sorted(found)]


def matched(seeds: Sequence[Seed], condition: Condition, rows: Sequence[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """Compare skills where arms are equally good at long documents, in training, on the way up.

    Returns:
        The long accuracy: nine tenths of the highest point of the arm that gets least far; and each arm's skills where it first
        has it, between two evaluations by interpolation.
    """
    found = {}
    for row in rows:
        if row["method"] not in UNTRAINED:
            names = (f"eval/{NAME}/{LONG}", "skills")
            long, skill = (curves(seeds, condition, row["method"], row["lr"], name)[1] for name in names)
            found[row["method"]] = ([raised_of(rows, "long"), *long], [raised_of(rows, "skills"), *skill])
    level = 0.9 * min(max(long) for long, _ in found.values())
    values = {}
    for method, (long, skill) in found.items():
        place = next(number for number, value in enumerate(long) if value >= level)
        share = (level - long[place - 1]) / (long[place] - long[place - 1]) if place else 1.0
        before = skill[place - 1] if place else skill[0]
        values[method] = 100 * (before + share * (skill[place] - before))
    return 100 * level, values


def differences(measured: Measured) -> str:
    """Write by how many points one arm's long accuracy is above another's, seed by seed: seeds differ more than arms do."""
    found = []
    for one, other in COMPARED:
        if one in measured and other in measured:
            gains = [a["long"] - b["long"] for a, b in zip(measured[one], measured[other], strict=True)]
            found.append(f"`{one}` less `{other}` {', '.join(f'{gain:+.1f}' for gain in gains)}")
    return "; ".join(found)


def raised_of(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Return what every arm starts from, as a share."""
    return next(row[name] for row in rows if row["method"] == "raised") / 100


def plot(condition: Condition, seeds: Sequence[Seed], rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw long, short and skills against iterations, rewards and the divergence from the short reference."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        f"eval/{NAME}/{LONG}": "long: right at 8 chunks (%)",
        f"eval/{NAME}/{SHORT}": "short: right at 1 chunk (%)",
        "skills": "skills (%)",
        "rewards/chosen": "reward of chosen",
        "rewards/rejected": "reward of rejected",
        "kl/short_to_long": "KL estimate, from the arm's own reference",
    }
    by_name = {row["method"]: row for row in rows}
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axis, (name, title) in zip(axes.flat, panels.items(), strict=True):
        percent = "%" in title
        for place, method in enumerate(MAIN):
            if method in by_name:
                steps, values = curves(seeds, condition, method, by_name[method]["lr"], name)
                if percent and steps:
                    start = {"skills": "skills", f"eval/{NAME}/{LONG}": "long", f"eval/{NAME}/{SHORT}": "short"}[name]
                    steps, values = [0, *steps], [by_name["raised"][start], *(100 * value for value in values)]
                if steps:
                    style = {"linewidth": 2.6 if method == "longpo" else 1.4, "color": f"C{place}"}
                    axis.plot(steps, values, label=method, marker="o" if percent else None, markersize=3, **style)
        if percent:
            axis.axhline(by_name["base"][start], color="0.6", linestyle=":", label="base")
            axis.set_ylim(-3, 103)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
    axes[0, 1].legend(fontsize=9, loc="center")
    figure.suptitle(f"{condition.name}: {condition.title} (mean over {len(seeds)} seeds)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def rows_of_rounds(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Make the rows of compare_rounds.py; none before all seeds have run."""
    rows = []
    for method, (model, iterations) in ROUNDS.items():
        try:
            found = [scores(folder_of(seed) / "evaluation", model) for seed in seeds]
        except FileNotFoundError:
            return []
        by_name = {"long": LONG, "short": SHORT, "2x": "2x", "4x": "4x", "reverse": "reverse", "recall": "recall"}
        row: dict[str, Any] = {"condition": "rounds", "method": method}
        for name, group in by_name.items():
            row |= spread_of(name, [one[group] for one in found])
        row |= spread_of("skills", [skills(one) for one in found])
        row |= {"lr": learning_rate(seeds[0]) if iterations else None, "seeds": len(seeds), "steps": iterations}
        rows.append({**row, "long_by_seed": [one[LONG] for one in found]})
    return rows


def table_of_rounds(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Write the rows of rounds as Markdown."""
    heads = ("model", "iterations", "long (8 chunks)", "the same, seed by seed", "4 chunks", "short (1 chunk)", "skills")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        seeds = ", ".join(f"{value:.1f}" for value in row["long_by_seed"])
        cells = (row["method"], row["steps"], cell(row, "long"), seeds, cell(row, "4x"), cell(row, "short"), cell(row, "skills"))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def write_page(sections: Sequence[str]) -> None:
    """Put the tables between their marks."""
    text = PAGE.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise UserError(f"{PAGE}: the marks around the tables are not there")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text("\n".join([before.rstrip("\n"), "", BEGIN, "", *sections, "", END]) + after, encoding="utf-8")


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(arms.SEEDS))
    arguments = parser.parse_args()
    os.chdir(REPOSITORY)
    seeds = [Seed(seed) for seed in arguments.seeds]
    rows: list[dict[str, Any]] = []
    sections: list[str] = []
    for condition in CONDITIONS:
        measured = measure_all(condition, seeds)
        found = rows_of(condition, measured)
        if not found:
            continue
        rows += found
        image = IMAGES / f"miniature-{condition.name}.png"
        plot(condition, seeds, found, image)
        right = labels(condition, seeds)
        level, at = matched(seeds, condition, found)
        listed = ", ".join(f"`{method}` {value:.0f}" for method, value in at.items())
        sections += [
            f"### `{condition.name}`: {condition.title}",
            "",
            f"Answers in the pairs that are right: chosen {right['chosen']:.1f}%, rejected {right['rejected']:.1f}%.",
            "",
            *table(found),
            "",
            f"Long accuracy, seed by seed: {differences(measured)}.",
            "",
            f"Skills where an arm, on its way, first answers {level:.0f}% at 8 chunks: {listed}.",
            "",
            f"![{condition.name}: scores, rewards and divergence against iterations](images/{image.name})",
            "",
        ]
    compared = rows_of_rounds(arguments.seeds)
    if compared:
        rows += compared
        sections += ["### `rounds`: two rounds, and one of as many tokens", "", *table_of_rounds(compared), ""]
    if not rows:
        raise UserError(f"{BUILD}: no condition is complete for seeds {arguments.seeds}; run {HERE}/study.py first")
    Path(HERE, "results.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    write_page(sections[:-1])
    print(f"{HERE}/results.json: {len(rows)} rows")


if __name__ == "__main__":
    run_command(main)
