"""From the file to commands: what is in them, who does what, what depends on what, and what is refused."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_longpo.config.cli import parse_args
from megatron_longpo.evolution.order import absent_inputs, feeders
from megatron_longpo.evolution.plan import Plan
from megatron_longpo.evolution.stages import Stage
from megatron_longpo.utils.errors import UserError
from tests.support.recorded_commands import read_command

PAPER = """
output: runs/m
model: models/m
launch: {processes: 8}
defaults:
  generate: {preset: paper, num-turns: 4}
  train: {num-epochs: 1, bf16: true, tensor-model-parallel-size: 4, sequence-parallel: true, overlap-grad-reduce: false}
  evaluate: {tasks: [ruler, mmlu], short-data: data/short, samples: 50}
stop: {short: [mmlu], max-short-loss: 1.0, long: [ruler], min-long-gain: 0.5}
rounds:
  - {name: 128k, seq-length: 131072, rotary-base: 1e7, documents: docs/128k.jsonl}
  - {name: 256k, seq-length: 262144, rotary-base: 1e7, documents: docs/256k.jsonl}
  - {name: 512k, seq-length: 524288, rotary-base: 1e7, documents: docs/512k.jsonl, generator: 128k, start: 128k, reference: 128k,
     train: {lr: 1e-7}}
"""
SMALL = """
output: out
model: model
defaults: {train: {train-iters: 1}}
rounds: [{name: a, seq-length: 100, documents: docs}]
"""


def stage(plan: Plan, name: str) -> Stage:
    return next(stage for stage in plan.stages if stage.name == name)


def flag(plan: Plan, name: str, flag: str) -> str | None:
    """The value of a flag in a stage's command."""
    return dict(itertools.pairwise(stage(plan, name).command)).get(flag)


def test_the_stages_of_the_paper_s_rounds_come_in_order(planned: Callable[[str], Plan]) -> None:
    names = [stage.name for stage in planned(PAPER).stages]
    each = ("generate", "preprocess", "precompute", "train", "export", "evaluate", "decide")
    expected = ["base/convert", "base/evaluate", *(f"128k/{kind}" for kind in each), "128k/convert"]
    assert names == [*expected, *(f"256k/{kind}" for kind in each), *(f"512k/{kind}" for kind in each)]


def test_each_round_s_models_are_those_that_the_file_says_or_the_last(planned: Callable[[str], Plan]) -> None:
    plan = planned(PAPER)
    models = {"128k": ("models/m", "base"), "256k": ("runs/m/128k/exported", "128k"), "512k": ("runs/m/128k/exported", "128k")}
    for name, (generator, native) in models.items():
        assert flag(plan, f"{name}/generate", "--model") == generator
        assert flag(plan, f"{name}/train", "--pretrained-checkpoint") == f"runs/m/{native}/native"
        assert flag(plan, f"{name}/precompute", "--reference-checkpoint") == f"runs/m/{native}/native"
        assert flag(plan, f"{name}/train", "--reference-checkpoint") is None, "the start is the reference"


def test_start_and_reference_may_differ(planned: Callable[[str], Plan]) -> None:
    plan = planned(PAPER.replace("generator: 128k, start: 128k, reference: 128k", "start: 256k, reference: base"))
    assert flag(plan, "512k/generate", "--model") == "runs/m/256k/exported"
    assert flag(plan, "512k/train", "--pretrained-checkpoint") == "runs/m/256k/native"
    assert flag(plan, "512k/train", "--reference-checkpoint") == flag(plan, "512k/precompute", "--reference-checkpoint")
    assert flag(plan, "512k/train", "--reference-checkpoint") == "runs/m/base/native"
    assert {"base/convert", "256k/convert"} <= {one.name for one in plan.stages}


def test_training_gets_the_round_s_settings_over_the_defaults(planned: Callable[[str], Plan]) -> None:
    plan = planned(PAPER)
    for name, length, lr in (("128k", 131072, 5e-7), ("512k", 524288, 1e-7)):
        command = read_command(list(stage(plan, f"{name}/train").command))
        config = parse_args(command.flags, world_size=8)
        assert (config.data.seq_length, config.model.rotary_base, config.optimizer.lr) == (length, 1e7, lr)
        assert config.checkpoint.save == config.checkpoint.load == f"runs/m/{name}/trained"
        assert config.parallel.sequence_parallel
        assert not config.parallel.overlap_grad_reduce
    assert stage(plan, "128k/train").command[:4] == ("torchrun", "--standalone", "--nproc-per-node=8", "pretrain_longpo.py")
    assert "--no-overlap-grad-reduce" in stage(plan, "128k/train").command


def test_what_training_says_of_the_reference_its_cache_is_made_with(planned: Callable[[str], Plan]) -> None:
    plan = planned(PAPER.replace("bf16: true", "bf16: true, reference-rotary-base: 2e6, reference-context: long"))
    assert flag(plan, "128k/precompute", "--reference-rotary-base") == "2e+06"
    assert flag(plan, "128k/precompute", "--reference-context") == "long"
    assert "--bf16" in stage(plan, "128k/precompute").command
    assert str(stage(plan, "128k/precompute").outputs[0]) == "runs/m/128k/pairs.reference-long.npz"


@pytest.mark.parametrize(
    ("train", "caches"),
    [
        ("train-iters: 1", ["precompute"]),
        ("train-iters: 1, reference: live", []),
        ("train-iters: 1, preset: simpo", []),
        ("train-iters: 1, preset: solo-dpo", ["precompute-short", "precompute-long"]),
    ],
)
def test_reference_caches_are_made_where_the_objective_reads_them(
    planned: Callable[[str], Plan], train: str, caches: list[str]
) -> None:
    plan = planned(SMALL.replace("train-iters: 1", train))
    assert [one.name for one in plan.stages if one.kind == "precompute"] == [f"a/{name}" for name in caches]
    made = {artifact.path for one in plan.stages if one.kind == "precompute" for artifact in one.outputs}
    assert made <= {artifact.path for artifact in stage(plan, "a/train").inputs}


def test_a_run_with_adapters_is_exported_merged(planned: Callable[[str], Plan]) -> None:
    plan = planned(SMALL.replace("train-iters: 1", "train-iters: 1, lora-rank: 4, reference: live"))
    assert "--merge" in stage(plan, "a/export").command
    assert Path("out/base/native") in {artifact.path for artifact in stage(plan, "a/export").inputs}
    assert "--merge" not in stage(planned(SMALL), "a/export").command


def test_models_are_evaluated_at_the_lengths_at_which_they_are_compared(planned: Callable[[str], Plan]) -> None:
    def lengths(plan: Plan, name: str) -> list[str]:
        words = list(stage(plan, f"{name}/evaluate").command)
        after = words[words.index("--lengths") + 1 :] if "--lengths" in words else []
        return list(itertools.takewhile(str.isdigit, after))

    plan = planned(PAPER)
    names = ("base", "128k", "256k", "512k")
    assert [lengths(plan, name) for name in names] == [["131072"], ["131072", "262144"], ["262144", "524288"], ["524288"]]
    plan = planned(PAPER.replace("samples: 50", "lengths: [4096, 131072]").replace("[mmlu]", "[vt@2048]"))
    assert lengths(plan, "base") == ["2048", "4096", "131072"]
    assert lengths(plan, "256k") == ["2048", "4096", "131072", "262144", "524288"]
    text = PAPER.replace("[ruler, mmlu]", "[mmlu]").replace("[ruler]", "[mmlu]")
    assert lengths(planned(text), "base") == [], "only RULER's tasks have lengths"


def test_a_decision_compares_with_the_base_and_the_round_before(planned: Callable[[str], Plan]) -> None:
    plan = planned(PAPER.replace("[ruler]", "[ruler, 'questions:mine/{seq-length}', 'questions:{round}']").replace(
        "samples: 50", "questions: [mine=q.jsonl, q/128k.jsonl, q/256k.jsonl, q/512k.jsonl]"))  # fmt: skip
    words = " ".join(stage(plan, "256k/decide").command)
    results = "runs/m/evaluation/{}/results.json"
    assert f"--base {results.format('base')} --before {results.format('128k')} --after {results.format('256k')}" in words
    assert "--length 262144" in words
    assert "--short mmlu --max-short-loss 1 --long ruler questions:mine/262144 questions:256k --min-long-gain 0.5" in words
    assert flag(plan, "128k/decide", "--before") == results.format("base")
    assert {str(one.path) for one in stage(plan, "256k/decide").inputs} == {results.format(n) for n in ("base", "128k", "256k")}


def test_every_stage_depends_on_what_it_reads(planned: Callable[[str], Plan]) -> None:
    plan = planned(PAPER)
    assert feeders(plan.stages, "128k/generate") == set()
    first = {"128k/generate", "128k/preprocess", "128k/precompute", "128k/train", "128k/export", "base/convert"}
    assert feeders(plan.stages, "128k/evaluate") == first
    decided = {*first, "128k/evaluate", "base/evaluate", "128k/decide"}
    assert feeders(plan.stages, "256k/generate") == decided
    assert "256k/decide" in feeders(plan.stages, "512k/generate")
    made = {artifact.path for one in plan.stages for artifact in one.outputs}
    for one in plan.stages:
        words = {Path(word.partition("=")[2] or word) for word in one.command}
        read = words & made - {artifact.path for artifact in one.outputs}
        assert read <= {artifact.path for artifact in one.inputs}, one.name


def test_files_that_flags_name_are_read(planned: Callable[[str], Plan]) -> None:
    text = PAPER.replace("num-turns: 4", "lead-in-file: l.txt, question-generator: 'ask.py:ask'").replace(
        "samples: 50", "questions: [mine=q.jsonl, r.jsonl], haystack: hay=stack"
    )
    plan = planned(text)
    assert {Path("l.txt"), Path("ask.py")} <= {artifact.path for artifact in stage(plan, "256k/generate").inputs}
    read = {artifact.path for artifact in stage(plan, "base/evaluate").inputs}
    assert {Path("q.jsonl"), Path("r.jsonl"), Path("hay=stack"), Path("data/short")} <= read
    assert ("base/evaluate", "q.jsonl") in absent_inputs(plan.stages)


def test_documents_and_model_may_be_made_by_commands(planned: Callable[[str], Plan]) -> None:
    plan = planned(
        "output: out\nmodel: {command: python make.py --output m, output: m}\n"
        "defaults: {train: {train-iters: 1}, evaluate: {questions: [out/q.jsonl], tasks: [vt]}}\n"
        "rounds:\n"
        "  - {name: a, seq-length: 100, documents: d.jsonl}\n"
        "  - {name: b, seq-length: 200, documents: {command: [python, docs.py, a b], output: e.jsonl, also: [out/q.jsonl],"
        " inputs: [words]}}\n"
    )
    assert [one.name for one in plan.stages][:4] == ["model", "base/convert", "b/documents", "base/evaluate"]
    assert stage(plan, "model").command == ("python", "make.py", "--output", "m")
    assert stage(plan, "b/documents").command == ("python", "docs.py", "a b")
    assert {path for _, path in absent_inputs(plan.stages)} == {"make.py", "docs.py", "words", "d.jsonl"}
    assert "model" in feeders(plan.stages, "a/generate")
    assert "b/documents" in feeders(plan.stages, "base/evaluate")


def test_a_generator_behind_servers_gives_only_its_tokenizer(planned: Callable[[str], Plan]) -> None:
    plan = planned(PAPER.replace("num-turns: 4", "server: [http://n1/v1, http://n2/v1]"))
    assert flag(plan, "256k/generate", "--tokenizer-model") == "runs/m/128k/exported"
    assert "--model" not in stage(plan, "256k/generate").command
    other = planned(PAPER.replace("num-turns: 4", "server: http://n3/v1"))
    assert stage(plan, "256k/generate").is_same(stage(other, "256k/generate").command), "servers come and go"


def test_layout_and_memory_do_not_change_what_a_training_makes(planned: Callable[[str], Plan]) -> None:
    train = stage(planned(PAPER), "128k/train")
    for before, after, same in (
        ("tensor-model-parallel-size: 4", "tensor-model-parallel-size: 2", True),
        ("processes: 8", "processes: 16", True),
        ("num-epochs: 1", "num-epochs: 1, save-interval: 10, recompute-granularity: full, no-recompute-attention: true", True),
        ("num-epochs: 1", "num-epochs: 2", False),
        ("num-epochs: 1", "num-epochs: 1, beta: 0.2", False),
    ):
        assert train.is_same(stage(planned(PAPER.replace(before, after)), "128k/train").command) == same, after


def test_where_and_in_how_many_processes_a_stage_runs_does_not_change_it(planned: Callable[[str], Plan]) -> None:
    here = planned(SMALL)
    for launch in ("{processes: 2}", "{launcher: slurm, slurm: {train: {nodes: 2}}}", "{launcher: slurm, processes: 4}"):
        there = planned(SMALL.replace("rounds:", f"launch: {launch}\nrounds:"))
        assert stage(there, "a/train").command[0] == "torchrun"
        for name in ("a/train", "a/precompute", "a/generate"):
            assert stage(here, name).is_same(stage(there, name).command), launch


def test_values_are_given_as_they_are_written(planned: Callable[[str], Plan]) -> None:
    text = SMALL.replace("train-iters: 1}", "train-iters: 1, lr: 1e-6}, generate: {verify: off, temperature: 0.10}")
    plan = planned(text.replace("{name: a,", "{name: a, rotary-base: 1e7,"))
    assert flag(plan, "a/train", "--lr") == "1e-6"
    assert flag(plan, "a/train", "--rotary-base") == flag(plan, "a/generate", "--rotary-base") == "1e7"
    assert (flag(plan, "a/generate", "--verify"), flag(plan, "a/generate", "--temperature")) == ("off", "0.10")


def test_a_round_s_empty_value_takes_a_default_away(planned: Callable[[str], Plan]) -> None:
    text = SMALL.replace("{train: {train-iters: 1}}", "{train: {train-iters: 1, beta: 0.3}}")
    plan = planned(text.replace("documents: docs}", "documents: docs, train: {beta: }, generate: {context-length: null}}"))
    assert "--beta" not in stage(plan, "a/train").command
    assert "--context-length" not in stage(plan, "a/generate").command
    assert flag(planned(text), "a/generate", "--context-length") == "100"


def test_what_a_command_warns_of_is_told(planned: Callable[[str], Plan]) -> None:
    plan = planned(SMALL.replace("train-iters: 1", "train-iters: 1, simpo-gamma: 2"))
    (warning,) = plan.warnings
    assert warning.startswith("a/train: --simpo-gamma")


REFUSED = [
    ("output: out", "", "output: is missing; for example runs/mistral"),
    ("output: out", "output: out\nmodell: x", "modell: unknown; did you mean model?"),
    ("output: out", "output: out\noutput: x", ":3: output occurs twice"),
    ("output: out", "output: [out", ":3: expected ','"),
    ("output: out", "output: [out]", "output: expected one value"),
    ("rounds: [{", "rounds: []\nx: [{", "x: unknown"),
    ("rounds: [{name: a, seq-length: 100, documents: docs}]", "rounds: []", "rounds: expected a list of rounds"),
    ("name: a", "name: a/b", "rounds[0].name: 'a/b' cannot name a folder"),
    ("name: a", "name: base", "rounds[0].name: 'base' is taken; there are base"),
    ("name: a", "nam: a", "rounds[0].name: is missing; for example 128k"),
    ("seq-length: 100", "seq-length: 1k", "rounds[0].seq-length: '1k' is not a whole number"),
    ("seq-length: 100", "seq-length: 0", "rounds[0].seq-length: 0 must be at least 1"),
    ("seq-length: 100", "rotary-base: 1", "rounds[0].seq-length: is missing; for example 131072"),
    ("seq-length: 100", "seq-length: 100, rotary-base: much", "rounds[0].rotary-base: 'much' is not a number"),
    ("seq-length: 100", "seq-length: 100, generator: b", "rounds[0].generator: 'b' is none of base, which are there before"),
    ("seq-length: 100", "seq-length: 100, start: a", "rounds[0].start: 'a' is none of base"),
    ("documents: docs", "documents: {output: d}", "rounds[0].documents.command: expected a command"),
    ("documents: docs", "documents: docs, trian: {}", "rounds[0].trian: unknown; did you mean train?"),
    ("train-iters: 1", "train-iters: [[1]]", "defaults.train.train-iters: expected a value or a list of values"),
    ("{train: {train-iters: 1}}", "{trains: {}}", "defaults.trains: unknown; did you mean train?"),
    ("train-iters: 1", "train-iters: 1, lrr: 1", "train.lrr: unknown flag; did you mean lr?"),
    ("train-iters: 1", "train-iters: 1, help: true", "train.help: unknown flag"),
    ("train-iters: 1", "train-iters: 1, bf16: yes", "train.bf16: takes true or false"),
    ("train-iters: 1", "train-iters: many", "a/train: argument --train-iters: invalid int value: 'many'"),
    ("train-iters: 1", "train-iters: 1, num-epochs: 2", "a/train: "),
    ("train-iters: 1", "train-iters: 1, save: x", "train.save: is given by the loop; its files have fixed places"),
    ("train-iters: 1", "train-iters: 1, seq-length: 5", "train.seq-length: is given by the loop; it is the round's seq-length"),
    ("train-iters: 1", "train-iters: 1, context-parallel-size: 2", "a/train: 1 processes are not a multiple of"),
    ("train-iters: 1}", "train-iters: 1}, precompute: {context-parallel-size: 2}", "a/precompute: 1 processes are not"),
    (
        "train-iters: 1}",
        "train-iters: 1}, precompute: {bf16: true}",
        "precompute.bf16: is given by the loop; it is what train says",
    ),
    ("train-iters: 1}", "train-iters: 1}, generate: {num-turns: [1, 2]}", "a/generate: unrecognized arguments: 2"),
    ("train-iters: 1}", "train-iters: 1}, generate: {skip-filter: shrt}", "a/generate: argument --skip-filter: invalid choice"),
    ("train-iters: 1}", "train-iters: 1}, generate: {dry-run: true}", "generate.dry-run: is given by the loop"),
    ("rounds:", "stop: {long: [rulr]}\nrounds:", "stop.long: rulr is not among what evaluate asks in round a: ruler"),
    ("rounds:", "stop: {long: ['questions:x']}\nrounds:", "stop.long: questions:x is not among what evaluate asks"),
    ("rounds:", "stop: {short: [vt]}\nrounds:", "stop.short: say at which length, as in vt@4096"),
    ("rounds:", "stop: {max-short-loss: -1}\nrounds:", "stop.max-short-loss: -1 must be at least 0"),
    ("rounds:", "stop: {min-long-gain: nan}\nrounds:", "stop.min-long-gain: nan must be"),
    ("rounds:", "launch: {launcher: pbs}\nrounds:", "launch.launcher: 'pbs' is none of local, slurm"),
    ("rounds:", "launch: {processes: none}\nrounds:", "launch.processes: 'none' is not a whole number"),
    ("rounds:", "launch: {slurm: {trains: {}}}\nrounds:", "launch.slurm.trains: unknown; did you mean train?"),
    ("rounds:", "launch: {slurm: {train: {nodes: two}}}\nrounds:", "launch.slurm.train.nodes: expected a whole number"),
    ("rounds:", "launch: {slurm: {train: {dependency: x}}}\nrounds:", "launch.slurm.train.dependency: is set by the loop"),
]


@pytest.mark.parametrize(("before", "after", "message"), REFUSED, ids=[after for _, after, _ in REFUSED])
def test_a_mistake_is_refused_in_one_line_that_names_file_and_field(
    planned: Callable[[str], Plan], tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in SMALL
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(UserError) as refusal:
        planned(SMALL.replace(before, after))
    assert str(refusal.value).startswith(f"{tmp_path}/rounds.yaml:")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert said.getvalue() == ""


def test_a_file_that_is_not_there_or_no_mapping_is_refused(planned: Callable[[str], Plan], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file: expected names with values"):
        planned("- a\n- b\n")
    with pytest.raises(UserError, match="the file: expected names with values"):
        planned("")
