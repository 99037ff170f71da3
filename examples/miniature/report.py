"""Results of the study: examples/miniature/results.json, the tables in docs/miniature.md, and the plots beside it.

It takes every condition whose evaluations are there for all of `--seeds`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import arms
from arms import ARMS, CONDITIONS, Arm, Condition
from compare_rounds import folder_of, learning_rate
from language import SCOPES, VALUE_WORDS, Kind
from study import BUILD, HERE, LONG, NAME, REPOSITORY, Seed, choose_rates, read_sweep, scores, skills

from megatron_longpo.utils.errors import UserError, run_command

PAGE = Path("docs/miniature.md")
IMAGES = Path("docs/images")
BEGIN, END = "<!-- tables: written by examples/miniature/report.py -->", "<!-- end of tables -->"
UNTRAINED = ("base", "raised")
MAIN = ("sft", "nll", "dpo", "longpo-no-s2l", "longpo-no-nll", "longpo")
"""Arms of the paper and its ablations; the others are options beyond it."""
COMPARED = (
    ("longpo", "nll"),
    ("longpo", "longpo-no-s2l"),
    ("longpo-no-nll", "dpo"),
    ("longpo", "dpo"),
    ("longpo", "dpo-same-lr"),
    ("longpo", "sft"),
    ("hinge", "longpo"),
    ("ipo", "longpo"),
    ("solo-simpo", "longpo"),
    ("sft-s2l", "sft"),
)
"""What the preference adds to the NLL, what the short reference adds with an NLL and without, the rivals, and the options."""
ROUNDS = {"base": ("base", 0), "first round, 4x": ("4x", 40), "second round, 8x": ("8x", 80), "8x at once": ("at-once", 60)}
"""Rows of compare_rounds.py: the name of the model there, and iterations from the base on."""
Measured = Mapping[str, Sequence[Mapping[str, float]]]
"""Scores by method, of each seed."""
SHORT = "1x"
LENGTHS = tuple(f"{chunks}x" for chunks in arms.EVALUATED_CHUNKS)
"""Groups of questions by the length of their documents."""


def measure(seed: Seed, condition: Condition, method: str) -> dict[str, float]:
    """Read a model's scores."""
    folder = evaluation_of(seed, condition, method)
    found = scores(folder, method)
    found[SHORT] = scores(folder.with_name(f"{folder.name}-short"), method)[SHORT]
    begun = begun_right(folder / method / "samples.jsonl")
    named = {"long": found[LONG], "short": found[SHORT], "skills": skills(found), "skills_begun": skills(begun)}
    return {**named, **found}


def evaluation_of(seed: Seed, condition: Condition, method: str) -> Path:
    """Return the folder of the evaluation that has a method's answers."""
    return seed.place(condition) / ("evaluation-raised" if method == "raised" else "evaluation")


def begun_right(samples: Path) -> dict[str, float]:
    """Return the share of answers that begin with the right one, whether they end there or not, in percent by group."""
    counts: dict[str, list[bool]] = {}
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        right = sample["expected"][0].split()
        counts.setdefault(sample["group"], []).append(sample["answer"].split()[: len(right)] == right)
    return {group: 100 * statistics.mean(found) for group, found in counts.items()}


def measure_all(condition: Condition, seeds: Sequence[Seed], trained: Iterable[str]) -> dict[str, list[dict[str, float]]]:
    """Read the scores of every method that all seeds have, seed by seed."""
    measured = {}
    for method in (*UNTRAINED, *trained):
        with contextlib.suppress(FileNotFoundError):
            measured[method] = [measure(seed, condition, method) for seed in seeds]
    return measured


def rows_of(condition: Condition, measured: Measured, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Make the rows of a condition."""
    rows = []
    for method, found in measured.items():
        row: dict[str, Any] = {"condition": condition.name, "method": method}
        for name in ("long", "short", "skills", "skills_begun", *LENGTHS, "reverse", "recall"):
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


def labels(condition: Condition, seeds: Sequence[Seed]) -> str:
    """Say how many of the pairs' answers are right, and what the wrong ones are: nothing that training knows."""
    counts = {side: Counter[str]() for side in ("chosen", "rejected")}
    for seed in seeds:
        for line in (seed.place(condition) / "pairs.jsonl").read_text().splitlines():
            record = json.loads(line)
            for turn in record["turns"]:
                for side, found in counts.items():
                    found[kind_of(turn[side], turn["instruction"], record["long_context"], condition.kind)] += 1
    parts = []
    for side, found in counts.items():
        wrong = found["other scope"] + found["wrong"]
        part = f"{side} {100 * found['right'] / found.total():.1f}%"
        if condition.shared_keys and wrong:
            part += f" (of the wrong ones {100 * found['other scope'] / wrong:.0f}% are what another scope says of the key)"
        parts.append(part)
    return f"Answers in the pairs that are right: {', '.join(parts)}."


def told_of(key: str, document: str, kind: Kind) -> dict[str, list[str]]:
    """List what each scope of a document says of a key."""
    words, length = document.split(), VALUE_WORDS[kind]
    return {
        before: words[place + 2 : place + 2 + length]
        for place, (before, word) in enumerate(pairwise(words))
        if before in SCOPES and word == key
    }


def kind_of(answer: str, question: str, document: str, kind: Kind = "facts") -> str:
    """Tell whether an answer is right, is what another scope of the document says of the key, or is wrong in another way."""
    _, scope, key = question.split()
    told = told_of(key, document, kind)
    if answer.split() == told[scope]:
        return "right"
    return "other scope" if answer.split() in told.values() else "wrong"


def scopes_of_answers(condition: Condition, seeds: Sequence[Seed], methods: Iterable[str]) -> str:
    """Say how often a method answers what some scope says of the key, and how often it is then the right scope."""
    asked = [question for seed in seeds for question in long_records(seed.questions(condition))]
    chances = [100 / len(told_of(one["question"].split()[-1], one["context"], condition.kind)) for one in asked]
    found = []
    for method in methods:
        counts = Counter[str]()
        for record, answer in long_answers(condition, seeds, method):
            counts[kind_of(answer, record["question"], record["context"], condition.kind)] += 1
        some = counts["right"] + counts["other scope"]
        found.append(f"`{method}` {100 * some / counts.total():.0f} and {100 * counts['right'] / max(some, 1):.0f}%")
    chance = f"A model that takes any of the key's scopes would have {statistics.mean(chances):.0f}%"
    return f"Answers that are what some scope says of the key, and of these the right scope's: {', '.join(found)}. {chance}."


def lengths_of_answers(condition: Condition, seeds: Sequence[Seed], methods: Iterable[str]) -> str:
    """Say how often a method's answer has as many words as it should have, right or wrong."""
    wanted, found = VALUE_WORDS[condition.kind], []
    for method in methods:
        fit = [len(answer.split()) == wanted for _, answer in long_answers(condition, seeds, method)]
        found.append(f"`{method}` {100 * statistics.mean(fit):.0f}%")
    return f"Answers at {arms.LONG_CHUNKS} chunks that have {wanted} words, right or wrong: {', '.join(found)}."


def long_answers(condition: Condition, seeds: Sequence[Seed], method: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Go through a method's answers about long documents, each with its question."""
    for seed in seeds:
        samples = evaluation_of(seed, condition, method) / method / "samples.jsonl"
        asked, answered = (long_records(path) for path in (seed.questions(condition), samples))
        for question, sample in zip(asked, answered, strict=True):
            yield question, sample["answer"]


def long_records(path: Path) -> list[dict[str, Any]]:
    """Read the questions, or the answers, about long documents."""
    records = map(json.loads, path.read_text().splitlines())
    return [record for record in records if record["group"] == LONG]


def cell(row: Mapping[str, Any], name: str) -> str:
    """Write a mean with its spread."""
    spread = row[f"{name}_sd"]
    return f"{row[name]:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Write rows as Markdown."""
    lengths = (f"long ({arms.LONG_CHUNKS} chunks)", "4 chunks", "short (1 chunk)")
    heads = ("method", "lr", *lengths, "skills", "reverse", "recall", "skills, begun right")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    names = ("long", "4x", "short", "skills", "reverse", "recall", "skills_begun")
    for row in rows:
        rate = "" if row["lr"] is None else f"{row['lr']:g}"
        cells = (cell(row, name) for name in names)
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


def matched(seeds: Sequence[Seed], condition: Condition, rows: Sequence[dict[str, Any]]) -> tuple[float, dict[str, float | None]]:
    """Compare skills where arms are equally good at long documents, in training, on the way up.

    Returns:
        The long accuracy: nine tenths of the lowest peak, of the arms that get at least a quarter as far above the untrained
        model as the best; and each arm's skills where it first has it, between two evaluations by interpolation; None if it
        never does.
    """
    found = {}
    for row in rows:
        if row["method"] not in UNTRAINED:
            names = (f"eval/{NAME}/{LONG}", "skills")
            long, skill = (curves(seeds, condition, row["method"], row["lr"], name)[1] for name in names)
            found[row["method"]] = ([raised_of(rows, "long"), *long], [raised_of(rows, "skills"), *skill])
    start = raised_of(rows, "long")
    best = max(max(long) for long, _ in found.values())
    level = 0.9 * min(max(long) for long, _ in found.values() if max(long) - start >= (best - start) / 4)
    values: dict[str, float | None] = {}
    for method, (long, skill) in found.items():
        place = next((number for number, value in enumerate(long) if value >= level), None)
        if place is None:
            values[method] = None
            continue
        share = (level - long[place - 1]) / (long[place] - long[place - 1]) if place else 1.0
        before = skill[place - 1] if place else skill[0]
        values[method] = 100 * (before + share * (skill[place] - before))
    return 100 * level, values


def has_sweep(arm: Arm) -> bool:
    """Tell whether an arm, or the one whose learning rate it takes, has run at every learning rate."""
    validation = Seed(arms.VALIDATION_SEED)
    arm = next(other for other in ARMS if other.name == (arm.lr_of or arm.name))
    return all((validation.trained(CONDITIONS[0], arm, rate) / "metrics.jsonl").exists() for rate in arms.LEARNING_RATES)


def table_of_sweep(rates: Mapping[str, float]) -> list[str]:
    """Write what the validation seed's runs ended with, the chosen rate in bold."""
    base = scores(Seed(arms.VALIDATION_SEED).place(CONDITIONS[0]) / "evaluation", "base")
    heads = ["method", *(f"{rate:g}" for rate in arms.LEARNING_RATES)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for arm in ARMS:
        if arm.name in rates and not arm.lr_of:
            cells = []
            for rate, found in read_sweep(arm).items():
                text = " / ".join(f"{value:.1f}" for value in (found[LONG], found[SHORT], skills(found)))
                cells.append(f"**{text}**" if rate == rates[arm.name] else text)
            lines.append(f"| `{arm.name}` | {' | '.join(cells)} |")
    untrained = " / ".join(f"{value:.1f}" for value in (base[LONG], base[SHORT], skills(base)))
    return [f"Long / short / skills by learning rate, seed {arms.VALIDATION_SEED}; `base` has {untrained}:", "", *lines]


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

    on_long, on_short = (f"eval/{NAME}/{group}" for group in (LONG, SHORT))
    panels = {
        on_long: f"long: right at {arms.LONG_CHUNKS} chunks (%)",
        on_short: "short: right at 1 chunk (%)",
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
                    start = {"skills": "skills", on_long: "long", on_short: "short"}[name]
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
    rows, longest = [], LENGTHS[-1]
    for method, (model, iterations) in ROUNDS.items():
        try:
            found = [scores(folder_of(seed) / "evaluation", model) for seed in seeds]
        except FileNotFoundError:
            return []
        by_name = {"long": longest, "short": SHORT, **{group: group for group in (*LENGTHS, "reverse", "recall")}}
        row: dict[str, Any] = {"condition": "rounds", "method": method}
        for name, group in by_name.items():
            row |= spread_of(name, [one[group] for one in found])
        row |= spread_of("skills", [skills(one) for one in found])
        row |= {"lr": learning_rate(seeds[0]) if iterations else None, "seeds": len(seeds), "steps": iterations}
        rows.append({**row, "long_by_seed": [one[longest] for one in found]})
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
    swept = [arm for arm in ARMS if has_sweep(arm)]
    rates = choose_rates(swept) if swept else {}
    if swept:
        sections += ["### Learning rates", "", *table_of_sweep(rates), ""]
    for condition in CONDITIONS:
        measured = measure_all(condition, seeds, rates)
        found = rows_of(condition, measured, rates)
        if not found:
            continue
        rows += found
        image = IMAGES / f"miniature-{condition.name}.png"
        plot(condition, seeds, found, image)
        level, at = matched(seeds, condition, found)
        listed = ", ".join(f"`{method}` {'not reached' if value is None else f'{value:.0f}'}" for method, value in at.items())
        sections += [
            f"### `{condition.name}`: {condition.title}",
            "",
            labels(condition, seeds),
            "",
            *table(found),
            "",
            *([scopes_of_answers(condition, seeds, measured), ""] if condition.shared_keys else []),
            *([lengths_of_answers(condition, seeds, measured), ""] if condition.kind != "facts" else []),
            f"Long accuracy, seed by seed: {differences(measured) or 'no two of the compared arms have run'}.",
            "",
            f"Skills where an arm, on its way, first answers {level:.0f}% at {arms.LONG_CHUNKS} chunks: {listed}.",
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
