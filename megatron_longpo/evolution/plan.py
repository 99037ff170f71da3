"""From the file to the chain of commands: every stage of every round, with what it reads and leaves."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from megatron_longpo.config.cli import build_parser, parse_args, read_config_group
from megatron_longpo.config.layout import world_problems
from megatron_longpo.config.loss_types import reference_contexts
from megatron_longpo.config.schema import ParallelConfig, RunConfig
from megatron_longpo.evolution.config import BASE, Config, Flags, Round, Source
from megatron_longpo.evolution.flags import as_words, check
from megatron_longpo.evolution.order import in_order
from megatron_longpo.evolution.scores import QUESTIONS, is_asked, split_length
from megatron_longpo.evolution.stages import EXPORTED, NATIVE, SCORES, TOKENIZER, Artifact, Stage, View
from megatron_longpo.evolution.tools import HOW, OURS, PARALLEL, SCRIPTS, listed, named_files
from megatron_longpo.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Toolbox:
    """What is known of the commands.

    Attributes:
        parser_of: a script -> its parser.
        suites: of the evaluation: names that stand for several tasks, ``ruler`` among them.
    """

    parser_of: Callable[[str], argparse.ArgumentParser]
    suites: Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Stages in order, and what their commands' parsers warn of."""

    stages: tuple[Stage, ...]
    warnings: tuple[str, ...]


def make_plan(config: Config, tools: Toolbox) -> Plan:
    """List all stages.

    Raises:
        UserError: a command refuses its flags, or a score that decides is not measured.
    """
    planner = _Planner(config, tools)
    return Plan(tuple(in_order(list(planner.stages()))), tuple(planner.warnings))


class _Planner:
    """Builds the stages of one file."""

    def __init__(self, config: Config, tools: Toolbox) -> None:
        self._config, self._tools, self._out = config, tools, config.output
        self._parser = functools.cache(lambda kind: build_parser() if kind == "train" else tools.parser_of(SCRIPTS[kind]))
        self.warnings: list[str] = []

    def stages(self) -> Iterator[Stage]:
        config = self._config
        if config.model.command:
            yield self._own_command("model", "model", "Make the model", config.model, EXPORTED)
        first = config.rounds[0]
        yield self._convert(BASE)
        for round_ in config.rounds:
            if round_.documents.command:
                title = f"{round_.name}: make documents"
                yield self._own_command(f"{round_.name}/documents", "documents", title, round_.documents)
            if round_ is first:
                yield self._evaluate(BASE, first)
            yield self._generate(round_)
            yield self._preprocess(round_)
            trained = self._read_training(round_)
            yield from self._precompute(round_, trained)
            yield self._train(round_, trained)
            yield self._export(round_, trained)
            yield self._evaluate(round_.name, round_)
            yield self._decide(round_)
            if any(round_.name in (other.start, other.reference) for other in config.rounds):
                yield self._convert(round_.name)

    # where things are

    def _folder(self, name: str) -> Path:
        return self._out / name

    def _hf(self, name: str) -> Path:
        return Path(self._config.model.path) if name == BASE else self._folder(name) / "exported"

    def _native(self, name: str) -> Path:
        return self._folder(name) / "native"

    def _model(self, name: str) -> Artifact:
        return Artifact(self._hf(name), EXPORTED)

    def _results(self, name: str) -> Artifact:
        return Artifact(self._out / "evaluation" / name / "results.json", SCORES)

    def _dataset(self, name: str) -> tuple[Artifact, ...]:
        return tuple(Artifact(self._folder(name) / f"pairs.{end}") for end in ("bin", "idx", "json"))

    # the stages

    def _generate(self, round_: Round) -> Stage:
        flags, documents = dict(round_.flags["generate"]), round_.documents
        pairs = self._folder(round_.name) / "pairs.jsonl"
        model = "--tokenizer-model" if flags.get("server") else "--model"
        words = ["--input", documents.path, "--output", str(pairs), model, str(self._hf(round_.generator))]
        words += ["--seq-length", str(round_.seq_length)]
        flags = {"context-length": str(round_.seq_length), "rotary-base": round_.rotary_base, **flags}
        return self._stage(
            f"{round_.name}/generate",
            "generate",
            f"{round_.name}: {round_.generator} writes the pairs, answers from a chunk (chosen) and from the whole document",
            words,
            flags,
            inputs=(*_given(documents.path), self._model(round_.generator)),
            outputs=(Artifact(pairs),),
            leftovers=(f"{glob.escape(str(pairs))}.*",),
        )

    def _preprocess(self, round_: Round) -> Stage:
        prefix = self._folder(round_.name) / "pairs"
        words = ["--input", f"{prefix}.jsonl", "--output-prefix", str(prefix), "--tokenizer-model", self._config.model.path]
        return self._stage(
            f"{round_.name}/preprocess",
            "preprocess",
            f"{round_.name}: tokenise the pairs to an indexed dataset",
            [*words, "--seq-length", str(round_.seq_length)],
            round_.flags["preprocess"],
            inputs=(Artifact(Path(f"{prefix}.jsonl")), Artifact(self._hf(BASE), TOKENIZER)),
            outputs=self._dataset(round_.name),
            leftovers=tuple(glob.escape(f"{prefix}.{end}") for end in ("bad.jsonl", "partial")),
        )

    def _read_training(self, round_: Round) -> RunConfig:
        """Let the training's own parser read its flags, for the stages that depend on them."""
        parse = functools.partial(parse_args, world_size=self._processes("train"))
        place = f"{round_.name}/train"
        config, warnings = check(parse, self._training_words(round_), f"{self._config.path}: {place}")
        self._check_layout(config.parallel, "train", place)
        self.warnings += [f"{place}: {warning}" for warning in warnings]
        return config

    def _processes(self, kind: str) -> int:
        return self._config.launch.processes * self._config.launch.nodes(kind)

    def _check_layout(self, parallel: ParallelConfig, kind: str, place: str) -> None:
        problems = world_problems(parallel, self._processes(kind))
        if problems:
            raise UserError(f"{self._config.path}: {place}: {problems[0]} (launch.processes, and the nodes of its job)")

    def _training_words(self, round_: Round) -> list[str]:
        folder, saved = self._folder(round_.name), str(self._folder(round_.name) / "trained")
        words = ["--pretrained-checkpoint", str(self._native(round_.start))]
        if round_.reference != round_.start:
            words += ["--reference-checkpoint", str(self._native(round_.reference))]
        if round_.rotary_base:
            words += ["--rotary-base", round_.rotary_base]
        words += ["--data-path", str(folder / "pairs"), "--seq-length", str(round_.seq_length), "--save", saved, "--load", saved]
        return [*words, *self._words("train", round_.flags["train"])]

    def _precompute(self, round_: Round, config: RunConfig) -> Iterator[Stage]:
        contexts = reference_contexts(config.objective, config.reference) if config.reference.reference == "cache" else ()
        prefix, reference = self._folder(round_.name) / "pairs", self._native(round_.reference)
        for context in contexts:
            words = ["--reference-checkpoint", str(reference), "--data-path", str(prefix), "--reference-context", context]
            if config.reference.reference_rotary_base is not None:
                words += ["--reference-rotary-base", f"{config.reference.reference_rotary_base:g}"]
            words += ["--bf16"] if config.training.bf16 else []
            yield self._stage(
                f"{round_.name}/precompute" + (f"-{context}" if len(contexts) > 1 else ""),
                "precompute",
                f"{round_.name}: log-probs of the reference ({round_.reference}) given the {context} context",
                words,
                round_.flags["precompute"],
                inputs=(*self._dataset(round_.name), Artifact(reference, NATIVE)),
                outputs=(self._cache(round_.name, context),),
            )

    def _cache(self, name: str, context: str) -> Artifact:
        return Artifact(self._folder(name) / f"pairs.reference-{context}.npz")

    def _train(self, round_: Round, config: RunConfig) -> Stage:
        contexts = reference_contexts(config.objective, config.reference)
        models = dict.fromkeys((round_.start, round_.reference) if contexts else (round_.start,))
        caches = [self._cache(round_.name, context) for context in contexts] if config.reference.reference == "cache" else []
        return self._stage(
            f"{round_.name}/train",
            "train",
            f"{round_.name}: train from {round_.start} on sides of up to {round_.seq_length} tokens",
            self._training_words(round_),
            checked=True,
            files=round_.flags["train"],
            inputs=(*self._dataset(round_.name), *caches, *(Artifact(self._native(name), NATIVE) for name in models)),
            outputs=(Artifact(self._folder(round_.name) / "trained", NATIVE),),
        )

    def _export(self, round_: Round, config: RunConfig) -> Stage:
        trained, exported = self._folder(round_.name) / "trained", self._hf(round_.name)
        has_adapters = config.lora.lora_rank is not None
        base = (Artifact(self._native(round_.start), NATIVE),) if has_adapters else ()
        return self._stage(
            f"{round_.name}/export",
            "export",
            f"{round_.name}: export the trained model as a Hugging Face folder",
            ["--load", str(trained), "--save", str(exported), *(["--merge"] if has_adapters else [])],
            round_.flags["export"],
            inputs=(Artifact(trained, NATIVE), *base),
            outputs=(self._model(round_.name),),
            leftovers=(glob.escape(f"{exported}.partial"),),
        )

    def _convert(self, name: str) -> Stage:
        native = self._native(name)
        return self._stage(
            f"{name}/convert",
            "convert",
            f"{name}: convert the Hugging Face folder to a native checkpoint",
            ("--hf", str(self._hf(name)), "--save", str(native)),
            inputs=(self._model(name),),
            outputs=(Artifact(native, NATIVE),),
            leftovers=(glob.escape(f"{native}.partial"),),
        )

    def _evaluate(self, name: str, round_: Round) -> Stage:
        """Evaluate the model of a round, or with its tasks the base."""
        flags = dict(round_.flags["evaluate"])
        tasks, questions = self._asked(round_)
        lengths = {*listed(flags.get("lengths"))}
        if is_asked("ruler", tasks, (), self._tools.suites):
            lengths |= {str(length) for length in self._compared_lengths(name)}
        if lengths:
            flags["lengths"] = sorted(lengths, key=lambda text: (len(text), text))
        self._check_scores(round_, tasks, questions)
        folder = self._results(name).path.parent
        if flags.get("server"):
            model = ["--tokenizer-model", str(self._hf(name)), "--name", name]
        else:
            model = ["--model", f"{name}={self._hf(name)}"]
        return self._stage(
            f"{name}/evaluate",
            "evaluate",
            f"{name}: evaluate long and short contexts",
            [*model, "--output", str(folder.parent)],
            flags,
            inputs=(self._model(name),),
            outputs=(self._results(name),),
        )

    def _asked(self, round_: Round) -> tuple[list[str], list[str]]:
        """Tasks and files of questions that a round's model is asked, by name."""
        flags = round_.flags["evaluate"]
        questions = [text.partition("=")[0] if "=" in text else Path(text).stem for text in listed(flags.get("questions"))]
        return listed(flags.get("tasks")) or ([] if questions else ["ruler"]), questions

    def _compared_lengths(self, name: str) -> list[int]:
        """The length of a model's round, that of the next, which is compared with it, and what the stop rule names."""
        rounds, rule = self._config.rounds, self._config.stop
        place = next((place for place, round_ in enumerate(rounds) if round_.name == name), -1)
        named = [split_length(score)[1] for score in (*rule.short, *rule.long)]
        return [*(round_.seq_length for round_ in rounds[max(place, 0) : place + 2]), *filter(None, named)]

    def _check_scores(self, round_: Round, tasks: list[str], questions: list[str]) -> None:
        for field, names in (("short", self._config.stop.short), ("long", self._config.stop.long)):
            for score in _filled(names, round_):
                if not is_asked(score, tasks, questions, self._tools.suites):
                    raise UserError(
                        f"{self._config.path}: stop.{field}: {score} is not among what evaluate asks in round {round_.name}: "
                        f"{', '.join([*tasks, *(QUESTIONS + name for name in questions)])}"
                    )
                plain, length = split_length(score)
                if field == "short" and length is None and is_asked("ruler", [plain], (), self._tools.suites):
                    raise UserError(f"{self._config.path}: stop.short: say at which length, as in {score}@4096")

    def _decide(self, round_: Round) -> Stage:
        rule, rounds = self._config.stop, self._config.rounds
        place = rounds.index(round_)
        before = rounds[place - 1].name if place else BASE
        decision = self._folder(round_.name) / "decision.json"
        results = [self._results(name) for name in (BASE, before, round_.name)]
        words = ["decide", *_paired(("--base", "--before", "--after"), [str(one.path) for one in results])]
        words += ["--length", str(round_.seq_length), "--output", str(decision)]
        if rule.short:
            words += ["--short", *_filled(rule.short, round_), "--max-short-loss", f"{rule.max_short_loss:g}"]
        if rule.long:
            words += ["--long", *_filled(rule.long, round_), "--min-long-gain", f"{rule.min_long_gain:g}"]
        return self._stage(
            f"{round_.name}/decide",
            "decide",
            f"{round_.name}: decide whether to go on",
            words,
            checked=True,
            inputs=tuple(dict.fromkeys(results)),
            outputs=(Artifact(decision),),
            gate=decision,
        )

    # what they have in common

    def _own_command(self, name: str, kind: str, title: str, source: Source, view: View | None = None) -> Stage:
        """A command of the user's; its script is an input, and so is what he says."""
        scripts = [word for word in source.command if word.endswith((".py", ".sh"))]
        return Stage(
            name=name,
            kind=kind,
            title=title,
            command=source.command,
            inputs=tuple(Artifact(Path(path)) for path in (*scripts, *source.inputs)),
            outputs=(Artifact(Path(source.path), view), *(Artifact(Path(path)) for path in source.also)),
        )

    def _words(self, kind: str, flags: Flags) -> list[str]:
        return as_words(flags, self._parser(kind), f"{self._config.path}: {kind}", OURS[kind])

    def _stage(
        self,
        name: str,
        kind: str,
        title: str,
        words: Sequence[str],
        flags: Flags | None = None,
        *,
        inputs: tuple[Artifact, ...],
        outputs: tuple[Artifact, ...],
        leftovers: tuple[str, ...] = (),
        checked: bool = False,
        files: Flags | None = None,
        gate: Path | None = None,
    ) -> Stage:
        """Put a stage together; its parser reads the words unless that has been done (``checked``)."""
        words = [*words, *(self._words(kind, flags) if flags else [])]
        if not checked:
            parsed, _ = check(self._parser(kind).parse_args, words, f"{self._config.path}: {name}")
            if kind == "precompute":
                self._check_layout(read_config_group(parsed, ParallelConfig), kind, name)
        return Stage(
            name=name,
            kind=kind,
            title=title,
            command=(*self._program(kind), SCRIPTS[kind], *words),
            inputs=(*inputs, *named_files(kind, files or flags or {})),
            outputs=outputs,
            leftovers=leftovers,
            how=HOW.get(kind, frozenset()),
            saves=kind == "train",
            gate=gate,
            environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if kind == "train" else {},
        )

    def _program(self, kind: str) -> tuple[str, ...]:
        launch, nodes = self._config.launch, self._config.launch.nodes(kind)
        if kind not in PARALLEL or self._processes(kind) == 1:
            return ("python",)
        place = f"--nnodes={nodes}" if nodes > 1 else "--standalone"
        return ("torchrun", place, f"--nproc-per-node={launch.processes}")


def _filled(names: Sequence[str], round_: Round) -> list[str]:
    """Names of scores with what they say of the round filled in."""
    return [name.replace("{round}", round_.name).replace("{seq-length}", str(round_.seq_length)) for name in names]


def _paired(flags: Sequence[str], values: Sequence[str]) -> list[str]:
    return [word for pair in zip(flags, values, strict=True) for word in pair]


def _given(documents: str) -> tuple[Artifact, ...]:
    """Documents as an input; those of the hub have no files here."""
    return () if documents.startswith("hf:") else (Artifact(Path(documents)),)
