"""The study in miniature: one base model a seed, four conditions, every arm, learning rates chosen on a seed of their own.

  python examples/miniature/study.py                                    # one seed, condition `right`
  python examples/miniature/study.py --conditions right scopes --seeds 0 1 2
  python examples/miniature/study.py --full                             # three seeds, all conditions

It runs the product's own commands, two at a time with a thread each; docs/miniature.md tells how long they take. Everything lies
under build/miniature, and a second run goes on where the first one stopped.
Tables, plots and results.json are made by examples/miniature/report.py.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import arms
from arms import ARMS, CONDITIONS, Arm, Condition, Grade
from tasks import Pool, Task

from megatron_longpo.evolution.yaml_file import read_yaml
from megatron_longpo.utils.errors import UserError, run_command

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = "examples/miniature"
BUILD = Path("build/miniature")
NAME = "miniature"
"""What the questions are called in results."""
LONG = f"{arms.LONG_CHUNKS}x"
"""The group of questions about long documents."""


def python(name: str, script: str, *flags: object) -> Task:
    """Make a task of a command; what it makes depends on the language, if it is one of this folder's."""
    sources = tuple(REPOSITORY / path for path in (script, f"{HERE}/language.py") if script.startswith(HERE))
    return Task(name, ("python", script, *map(str, flags)), sources)


def pretrain(name: str, save: Path, *flags: object) -> Task:
    """Make a task of a training in one process, which goes on from what it has saved."""
    command = ("torchrun", "--nproc-per-node", "1", "pretrain_longpo.py", "--save", save, "--load", save, *flags)
    return Task(name, tuple(map(str, command)), progress=save)


def preprocess(name: str, pairs: Path, prefix: Path, model: Path) -> Task:
    """Make a task that tokenises pairs."""
    flags = ("--input", pairs, "--output-prefix", prefix, "--tokenizer-model", model, "--seq-length", arms.SEQ_LENGTH)
    return python(name, "tools/preprocess_preference_data.py", *flags, "--no-deduplicate", "--workers", 1, "--overwrite")


def evaluate(name: str, models: dict[str, Path], questions: Path, output: Path, *flags: object) -> Task:
    """Make a task that asks models the questions of a condition."""
    named = [f"{model}={folder}" for model, folder in models.items()]
    asked = ("--questions", f"{NAME}={questions}", "--questions-metric", "exact", "--questions-max-new-tokens", 20)
    together = ("--samples-per-group", 64, "--max-batch-tokens", 65536)
    return python(name, "tools/evaluate.py", "--model", *named, *asked, *together, "--output", output, *flags)


def told(condition: Condition) -> tuple[str, ...]:
    """Return the flags of make_data.py that say what documents are about."""
    return ("--kind", condition.kind, *(("--shared-keys",) if condition.shared_keys else ()))


def generation_flags() -> list[str]:
    """Return the flags of generation that this study shares with rounds.yaml."""
    shared = read_yaml(REPOSITORY / HERE / "rounds.yaml")["defaults"]["generate"]
    words: list[str] = []
    for name, value in shared.items():
        words += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return words


def skills(found: dict[str, float]) -> float:
    """Return the mean over the skills that need no document."""
    return (found["reverse"] + found["recall"]) / 2


def scores(output: Path, model: str) -> dict[str, float]:
    """Read a model's scores in percent, by group of questions."""
    path = output / model / "results.json"
    results = json.loads(path.read_text())
    groups = results["questions"][NAME]["groups"]
    return {group: float(found["score"]) for group, found in groups.items()}


class Seed:
    """Files and tasks of one seed."""

    def __init__(self, seed: int) -> None:
        """Name the folder."""
        self.seed = seed
        self.folder = BUILD / f"seed{seed}"
        self.erring = arms.SCHOOL[-1].iterations
        """Iteration of the last grade whose checkpoint errs; known after `choose_bases`."""

    def name(self, *parts: object) -> str:
        """Name a task."""
        return "-".join(map(str, (f"seed{self.seed}", *parts)))

    # The base model, by labels on short documents.

    def school(self) -> list[Task]:
        """Teach a base model: random weights, then plain SFT on ever longer short documents."""
        model, native = self.folder / "init", self.folder / "native"
        chain = [
            python(self.name("init"), f"{HERE}/make_model.py", "--output", model, "--seed", self.seed),
            python(self.name("convert"), "checkpoint_conversion/hf_to_mcore.py", "--hf", model, "--save", native),
        ]
        return chain + self.grades(arms.SCHOOL, native, 10 * self.seed)

    def graduate(self, grade: Grade) -> Path:
        """Checkpoints of a grade."""
        return self.folder / f"school{grade.name}"

    def grades(self, grades: Sequence[Grade], start: Path, seed: int) -> list[Task]:
        """Teach a checkpoint grade by grade; the seed is that of the first one's lessons."""
        starts = (start, *map(self.graduate, grades))
        return [task for number, grade in enumerate(grades) for task in self.grade(grade, starts[number], seed + number)]

    def grade(self, grade: Grade, start: Path, seed: int) -> list[Task]:
        """Teach a checkpoint by plain SFT; the seed is that of the lessons."""
        name, save = grade.name, self.graduate(grade)
        lessons, prefix = self.folder / f"lessons{name}.jsonl", self.folder / f"grade{name}"
        size = ("--number", grade.lessons, "--words", *grade.words)
        kept: tuple[object, ...] = ("--save-interval", 100, "--keep-checkpoints", 1)
        if grade is arms.SCHOOL[-1]:  # one of its early checkpoints is the base that errs
            kept = ("--save-interval", arms.ERRING_ITERATIONS[0])
        size += (("--lists", grade.lists) if grade.lists else ()) + (("--scopes", grade.scopes) if grade.scopes else ())
        return [
            python(self.name("lessons", name), f"{HERE}/make_data.py", "lessons", "--output", lessons, "--seed", seed, *size),
            preprocess(self.name("grade", name), lessons, prefix, self.folder / "init"),
            pretrain(
                self.name("school", name),
                save,
                *("--pretrained-checkpoint", start, "--data-path", prefix, "--seq-length", arms.SEQ_LENGTH),
                *("--train-iters", grade.iterations, "--global-batch-size", 48, "--micro-batch-tokens", 4096),
                *("--preference-weight", 0, "--nll-scope", grade.nll_scope, "--lr", grade.lr, "--min-lr", grade.min_lr),
                *("--lr-warmup-iters", 50, "--adam-beta2", 0.98, "--seed", self.seed, "--log-interval", 50),
                *kept,
            ),
        ]

    def export(self, iteration: int) -> Task:
        """Export a checkpoint of the last grade."""
        flags = ("--load", self.graduate(arms.SCHOOL[-1]), "--iteration", iteration, "--save", self.stop(iteration))
        return python(self.name("stop", iteration), "checkpoint_conversion/mcore_to_hf.py", *flags)

    def native(self, condition: Condition) -> Path:
        """The checkpoint that writes the pairs, refers, and is trained."""
        if condition.grades:
            return self.place(condition) / "base"
        return self.folder / ("erring" if condition.errs else "base")

    def exported(self, condition: Condition) -> Path:
        """The same as a Hugging Face folder."""
        if condition.grades:
            return self.place(condition) / "model"
        return self.stop(self.erring if condition.errs else arms.SCHOOL[-1].iterations)

    def stop(self, iteration: int) -> Path:
        """A checkpoint of the last grade as a Hugging Face folder."""
        return self.folder / "stops" / f"{iteration}"

    def write_choice(self, chunks: int, path: Path, condition: Condition | None = None) -> Task:
        """Write questions about documents of one length, by which checkpoints and the raised RoPE base are judged."""
        flags = ("--output", path, "--seed", 3000 + self.seed, "--number", arms.QUESTIONS // 2, "--chunks", chunks)
        if condition:
            return python(self.name(condition.name, "choice"), f"{HERE}/make_data.py", "questions", *flags, *told(condition))
        return python(self.name("choice", chunks), f"{HERE}/make_data.py", "questions", *flags)

    def teach(self, condition: Condition) -> list[Task]:
        """Teach the base of a condition what the school does not, write it in both formats, and ask it about one chunk."""
        model, asked = self.exported(condition), self.place(condition) / "choice-1x.jsonl"
        return [
            *self.grades(condition.grades, self.graduate(arms.SCHOOL[-1]), 10 * self.seed + len(arms.SCHOOL)),
            python(
                self.name(condition.name, "model"),
                "checkpoint_conversion/mcore_to_hf.py",
                *("--load", self.graduate(condition.grades[-1]), "--save", model),
            ),
            python(
                self.name(condition.name, "base"),
                "checkpoint_conversion/hf_to_mcore.py",
                *("--hf", model, "--save", self.native(condition)),
            ),
            self.write_choice(1, asked, condition),
            evaluate(self.name(condition.name, "taught"), {"base": model}, asked, self.taught(condition)),
        ]

    def taught(self, condition: Condition) -> Path:
        """What the base of a condition answers that is taught more than the school."""
        return self.place(condition) / "evaluation-taught"

    # One condition.

    def place(self, condition: Condition) -> Path:
        """Folder of a condition."""
        return self.folder / condition.name

    def questions(self, condition: Condition, *, short: bool = False) -> Path:
        """Questions of a condition; ``short``: the many about documents of one chunk."""
        return self.place(condition) / ("questions-short.jsonl" if short else "questions.jsonl")

    def write_questions(self, condition: Condition) -> Task:
        """Write the questions of a condition: documents that nobody trains on, of one chunk to the most."""
        sizes = ("--number", arms.QUESTIONS, "--chunks", *arms.EVALUATED_CHUNKS)
        flags = ("--output", self.questions(condition), "--seed", 1000 + self.seed, *sizes, *told(condition))
        return python(self.name(condition.name, "questions"), f"{HERE}/make_data.py", "questions", *flags)

    def write_short_questions(self, condition: Condition) -> Task:
        """Write the questions that short accuracy is measured with."""
        sizes = ("--number", arms.SHORT_QUESTIONS, "--chunks", 1)
        flags = ("--output", self.questions(condition, short=True), "--seed", 4000 + self.seed, *sizes, *told(condition))
        return python(self.name(condition.name, "questions-short"), f"{HERE}/make_data.py", "questions", *flags)

    def pairs(self, condition: Condition, chosen_arms: Sequence[Arm], rotary_base: float) -> list[Task]:
        """Let the base model write its pairs, tokenise them, and note what the references of the arms say."""
        place, native, model = self.place(condition), self.native(condition), self.exported(condition)
        documents, written, prefix = place / "documents.jsonl", place / "pairs.jsonl", place / "pairs"
        size = ("--seed", self.seed, "--number", arms.NUM_DOCUMENTS, "--chunks", arms.LONG_CHUNKS)
        generate = (
            *("--input", documents, "--output", written, "--model", model, *generation_flags()),
            *("--seq-length", arms.SEQ_LENGTH, "--context-length", arms.SEQ_LENGTH, "--max-chunk-tokens", 128),
            *("--max-new-tokens", condition.max_new_tokens, "--seed", self.seed),
        )
        reference = ("--reference-checkpoint", native, "--data-path", prefix, "--overwrite")
        long = ("--reference-context", "long", "--reference-rotary-base", rotary_base)
        script = "tools/precompute_reference_logprobs.py"
        chain = [
            python(
                self.name(condition.name, "documents"),
                f"{HERE}/make_data.py",
                "documents",
                "--output",
                documents,
                *size,
                *told(condition),
            ),
            python(self.name(condition.name, "pairs"), "tools/generate_preference_data.py", *generate),
            preprocess(self.name(condition.name, "dataset"), written, prefix, model),
            python(self.name(condition.name, "short"), script, *reference),
            python(self.name(condition.name, "long"), script, *reference, *long),
        ]
        if any(arm.reference == "both" for arm in chosen_arms):
            # A run that reads both contexts has one RoPE base for its reference: the model's own.
            own = place / "pairs-own"
            own_reference = ("--reference-checkpoint", native, "--data-path", own, "--overwrite")
            chain += [
                preprocess(self.name(condition.name, "dataset-own"), written, own, model),
                python(self.name(condition.name, "short-own"), script, *own_reference),
                python(self.name(condition.name, "long-own"), script, *own_reference, "--reference-context", "long"),
            ]
        return chain

    def trained(self, condition: Condition, arm: Arm, rate: float) -> Path:
        """Where an arm's run lies."""
        return self.place(condition) / f"{arm.name}-{rate:g}"

    def train(self, condition: Condition, arm: Arm, rate: float, rotary_base: float) -> Task:
        """Train an arm. The validation seed is asked more, and at the end only."""
        asked: tuple[object, ...] = ("--eval-tasks-samples", arms.QUESTIONS)
        if self.seed != arms.VALIDATION_SEED:
            asked = ("--eval-tasks-samples", arms.QUESTIONS_IN_TRAINING, "--eval-tasks-interval", arms.INTERVAL)
        save = self.trained(condition, arm, rate)
        reference: tuple[object, ...] = () if arm.reference == "none" else ("--reference-checkpoint", self.native(condition))
        if arm.reference == "long":
            reference += ("--reference-rotary-base", rotary_base)
        data = "pairs-own" if arm.reference == "both" else "pairs"
        return pretrain(
            self.name(condition.name, arm.name, f"{rate:g}"),
            save,
            *("--pretrained-checkpoint", self.native(condition), "--rotary-base", rotary_base),
            *("--data-path", self.place(condition) / data, "--seq-length", arms.SEQ_LENGTH),
            *arm.flags,
            *reference,
            *("--lr", rate, "--lr-warmup-fraction", 0.1, "--train-iters", arms.ITERATIONS),
            *("--global-batch-size", arms.GLOBAL_BATCH_SIZE, "--micro-batch-tokens", 4096, "--seed", self.seed),
            *("--eval-tasks", f"questions:{NAME}={self.questions(condition)}", *asked),
            *("--log-interval", 10),
        )

    def evaluate(self, condition: Condition, trained: dict[str, Path], *, short: bool = False) -> Task:
        """Ask the untrained model and trained ones."""
        models, end = {"base": self.exported(condition), **trained}, "-short" if short else ""
        name, output = self.name(condition.name, f"evaluate{end}"), self.place(condition) / f"evaluation{end}"
        return evaluate(name, models, self.questions(condition, short=short), output)

    def evaluate_raised(self, condition: Condition, rotary_base: float, *, short: bool = False) -> Task:
        """Ask the untrained model with its raised base."""
        models, end = {"raised": self.exported(condition)}, "-raised-short" if short else "-raised"
        name, output = self.name(condition.name, f"evaluate{end}"), self.place(condition) / f"evaluation{end}"
        return evaluate(name, models, self.questions(condition, short=short), output, "--rotary-base", rotary_base)


def choose_bases(seeds: Sequence[Seed], pool: Pool) -> dict[int, float]:
    """Make the base models, and choose each seed's erring checkpoint and raised RoPE base by the rules of `arms`."""
    pool.run("base models", [seed.school() for seed in seeds])
    stops = [*arms.ERRING_ITERATIONS, arms.SCHOOL[-1].iterations]
    chains, chosen = [], {}
    for seed in seeds:
        asked = {chunks: seed.folder / f"choice-{chunks}x.jsonl" for chunks in (1, arms.LONG_CHUNKS)}
        chain = [seed.write_choice(chunks, path) for chunks, path in asked.items()]
        chain += [seed.export(iteration) for iteration in stops]
        models = {str(iteration): seed.stop(iteration) for iteration in stops}
        chain.append(evaluate(seed.name("stops"), models, asked[1], seed.folder / "evaluation-stops"))
        for base in arms.RAISED_ROTARY_BASES:
            output, raised_model = seed.folder / f"evaluation-rotary-{base:g}", {"raised": seed.stop(stops[-1])}
            questions, flags = asked[arms.LONG_CHUNKS], ("--rotary-base", base)
            chain.append(evaluate(seed.name("rotary", f"{base:g}"), raised_model, questions, output, *flags))
        chains.append(chain)
    pool.run("base models: choice", chains)
    for seed in seeds:
        short = {stop: scores(seed.folder / "evaluation-stops", str(stop))["1x"] for stop in stops}
        seed.erring = erring = min(arms.ERRING_ITERATIONS, key=lambda stop: abs(short[stop] - arms.ERRING_TARGET))
        raised = {base: scores(seed.folder / f"evaluation-rotary-{base:g}", "raised")[LONG] for base in arms.RAISED_ROTARY_BASES}
        fit = [base for base in arms.RAISED_ROTARY_BASES if raised[base] <= arms.MOST_AFTER_RAISING]
        chosen[seed.seed] = fit[0] if fit else min(raised, key=lambda base: raised[base])
        report = {"short_by_iteration": short, "erring": erring, "raised": raised, "rotary_base": chosen[seed.seed]}
        (seed.folder / "choice.json").write_text(json.dumps(report, indent=1))
        require_short(seed, "the base model", short[stops[-1]])
        found = ", ".join(f"{base:g}: {value:.1f}" for base, value in raised.items())
        print(f"seed {seed.seed}: one chunk {short[stops[-1]]:.1f}; iteration {erring} errs ({short[erring]:.1f})")
        print(f"seed {seed.seed}: raised base {chosen[seed.seed]:g}; {LONG} untrained: {found}")
    chains = [
        [
            python(seed.name(what), "checkpoint_conversion/hf_to_mcore.py", "--hf", folder, "--save", seed.folder / what)
            for what, folder in (("base", seed.stop(stops[-1])), ("erring", seed.stop(seed.erring)))
        ]
        for seed in seeds
    ]
    pool.run("base models: conversion", chains)
    return chosen


def teach_more(seeds: Sequence[Seed], conditions: Sequence[Condition], pool: Pool) -> None:
    """Make the base models of conditions that ask for more than the school teaches."""
    for condition in conditions:
        if condition.grades:
            pool.run(f"{condition.name}: base models", [seed.teach(condition) for seed in seeds])
            for seed in seeds:
                short = scores(seed.taught(condition), "base")["1x"]
                require_short(seed, f"the base model of `{condition.name}`", short)


def require_short(seed: Seed, model: str, short: float) -> None:
    """Refuse a seed whose base model cannot look up on one chunk: there is nothing that it could teach itself."""
    if short < arms.LEAST_SHORT:
        found = f"answers {short:.0f}% of the questions on one chunk, below {arms.LEAST_SHORT:g}%"
        raise UserError(f"seed {seed.seed}: {model} {found}: it has not learned to look up; take another seed")


def run(seeds: Sequence[int], conditions: Sequence[Condition], chosen_arms: Sequence[Arm], workers: int) -> None:
    """Run everything that is asked for."""
    pool = Pool(BUILD, workers)
    validation = Seed(arms.VALIDATION_SEED)
    tested = [Seed(seed) for seed in seeds]
    rotary = choose_bases([validation, *tested], pool)

    def write_pairs(condition: Condition, seeds: Sequence[Seed]) -> None:
        chains = [
            [
                seed.write_questions(condition),
                *seed.pairs(condition, chosen_arms, rotary[seed.seed]),
                *([seed.write_short_questions(condition)] if seed is not validation else []),
            ]
            for seed in seeds
        ]
        pool.run(f"{condition.name}: pairs", chains)

    teach_more(tested, conditions, pool)
    first, base = CONDITIONS[0], rotary[validation.seed]
    write_pairs(first, [validation])
    swept = [arm for arm in chosen_arms if not arm.lr_of]
    sweep = [validation.train(first, arm, rate, base) for arm in swept for rate in arms.LEARNING_RATES]
    pool.run("learning rates", [[task] for task in (validation.evaluate(first, {}), *sweep)])
    rates = choose_rates(chosen_arms)
    print(f"learning rates: {', '.join(f'{name} {rate:g}' for name, rate in rates.items())}")
    for condition in conditions:
        write_pairs(condition, tested)
        pool.run(
            f"{condition.name}: training",
            [[seed.train(condition, arm, rates[arm.name], rotary[seed.seed])] for arm in chosen_arms for seed in tested],
        )
        tasks = []
        for seed in tested:
            trained = {arm.name: seed.trained(condition, arm, rates[arm.name]) for arm in chosen_arms}
            for short in (False, True):
                tasks.append(seed.evaluate(condition, trained, short=short))
                tasks.append(seed.evaluate_raised(condition, rotary[seed.seed], short=short))
        pool.run(f"{condition.name}: evaluation", [[task] for task in tasks])


def read_sweep(arm: Arm) -> dict[float, dict[str, float]]:
    """Read what an arm's runs of the validation seed ended with, by learning rate."""
    validation = Seed(arms.VALIDATION_SEED)
    return {rate: last_scores(validation.trained(CONDITIONS[0], arm, rate)) for rate in arms.LEARNING_RATES}


def choose_rates(chosen_arms: Sequence[Arm]) -> dict[str, float]:
    """Choose each arm's learning rate by its runs of the validation seed in the first condition.

    Returns:
        The rates by name; without an arm that takes the rate of one which is not among them.
    """
    first = CONDITIONS[0]
    base = scores(Seed(arms.VALIDATION_SEED).place(first) / "evaluation", "base")["1x"]
    rates = {arm.name: choose_rate(read_sweep(arm), base, LONG) for arm in chosen_arms if not arm.lr_of}
    return rates | {arm.name: rates[arm.lr_of] for arm in chosen_arms if arm.lr_of in rates}


def choose_rate(found: dict[float, dict[str, float]], base: float, long: str) -> float:
    """Choose the learning rate with the highest long accuracy of those that keep short accuracy within the bound.

    Args:
        found: scores in percent, by learning rate.
        base: short accuracy of the untrained model.
        long: the group whose accuracy is to rise.

    Returns:
        The rate; if all cost more short accuracy than the bound allows, the one that costs least.
    """
    kept = [rate for rate, scores in found.items() if scores["1x"] >= base - arms.MOST_SHORT_LOSS]
    if not kept:
        return max(found, key=lambda rate: found[rate]["1x"])
    return max(kept, key=lambda rate: found[rate][long])


def last_scores(run: Path) -> dict[str, float]:
    """Read what a run's last evaluation gave, in percent, by group of questions."""
    last = json.loads((run / "metrics.jsonl").read_text().strip().rpartition("\n")[2])
    start = f"eval/{NAME}/"
    return {
        name.removeprefix(start): 100 * value
        for name, value in last.items()
        if name.startswith(start) and not name.endswith("/nll")
    }


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = [condition.name for condition in CONDITIONS]
    parser.add_argument("--conditions", nargs="+", choices=names, default=["right"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], default=[arm.name for arm in ARMS])
    parser.add_argument("--full", action="store_true", help="all conditions, three seeds")
    parser.add_argument("--workers", type=int, default=2, help="commands at a time, a thread each (default: 2)")
    arguments = parser.parse_args()
    os.chdir(REPOSITORY)
    wanted = names if arguments.full else arguments.conditions
    asked = {name for arm in ARMS if arm.name in arguments.arms for name in (arm.name, arm.lr_of)}
    run(
        list(arms.SEEDS) if arguments.full else arguments.seeds,
        [condition for condition in CONDITIONS if condition.name in wanted],
        [arm for arm in ARMS if arm.name in asked],
        arguments.workers,
    )


if __name__ == "__main__":
    run_command(main)
