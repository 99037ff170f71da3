"""Laws of the command line: where a value comes from, and what is refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.config.cli import (
    DryRun,
    add_config_group,
    build_parser,
    dump_config,
    load_config,
    merge_layers,
    parse_args,
    parse_run,
    read_config_group,
)
from megatron_longpo.config.fields import FieldInfo, all_fields, fields_by_name, group_classes
from megatron_longpo.config.presets import PRESETS
from megatron_longpo.config.schema import ParallelConfig, RunConfig
from megatron_longpo.utils.errors import UserError

RUN = ["--pretrained-checkpoint", "model", "--data-path", "pairs"]
"""What every run needs, but for its length."""


def parse(*flags: str) -> RunConfig:
    return parse_args([*RUN, "--train-iters", "4", *flags], world_size=1)


def write_config(path: Path, **groups: dict) -> str:
    path.write_text(json.dumps(groups), encoding="utf-8")
    return str(path)


def test_without_flags_every_setting_has_the_default_of_the_schema():
    given = dataclasses.replace(
        RunConfig(),
        model=dataclasses.replace(RunConfig().model, pretrained_checkpoint="model"),
        data=dataclasses.replace(RunConfig().data, data_path=("pairs",)),
        training=dataclasses.replace(RunConfig().training, train_iters=4),
    )
    assert parse() == given


def values_of(info: FieldInfo) -> st.SearchStrategy:
    """Values that a flag can carry: those that survive as command-line words."""
    numbers = {int: st.integers(-(10**9), 10**9), float: st.floats(allow_nan=False, allow_infinity=False), bool: st.booleans()}
    words = st.text("abcXYZ019/._", min_size=1)
    one = st.sampled_from(info.choices) if info.choices else numbers.get(info.kind, words)
    return st.lists(one, min_size=1, max_size=3).map(tuple) if info.many else one


PARSER = build_parser()


@pytest.mark.parametrize("name", [info.name for info in all_fields()])
@settings(max_examples=10)
@given(data=st.data())
def test_a_flag_sets_its_own_field_and_no_other(name, data):
    info = fields_by_name()[name]
    value = data.draw(values_of(info))
    if info.kind is bool:
        words = [info.flag if value else info.flag.replace("--", "--no-", 1)]
    elif info.many:
        words = [info.flag, *map(str, value)]
    else:
        words = [f"{info.flag}={value}"]
    namespace = PARSER.parse_args(words)
    cls = group_classes()[info.group]
    assert read_config_group(namespace, cls) == dataclasses.replace(cls(), **{name: value})
    assert {key for key in vars(namespace) if key in fields_by_name()} == {name}


@settings(max_examples=20)
@given(data=st.data())
def test_a_dumped_configuration_loads_back_equal(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    config = RunConfig(
        **{
            group: cls(**{info.name: data.draw(values_of(info)) for info in all_fields() if info.group == group})
            for group, cls in group_classes().items()
        }
    )
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_a_dry_run_is_asked_for_by_its_flag_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    required = [*RUN, "--train-iters", "4"]
    config, described = parse_run([*required, "--dry-run", "--num-devices", "8", "--context-parallel-size", "8"])
    assert config.parallel.context_parallel_size == 8
    assert described == DryRun(8)
    assert parse_run(required)[1] is None
    assert parse_run([*required, "--dry-run"])[1] == DryRun(1)
    with pytest.raises(UserError, match="--num-devices describes a run that is not started; it needs --dry-run"):
        parse_run([*required, "--num-devices", "8"])
    with pytest.raises(UserError, match=r"--device-gib is -1\.0; it must be greater than 0"):
        parse_run([*required, "--dry-run", "--device-gib", "-1"])


def test_later_sources_win(tmp_path):
    file = write_config(tmp_path / "run.json", objective={"beta": 0.2}, optimizer={"optimizer": "sgd"})
    assert parse("--preset", "release").objective.beta == PRESETS["release"]["beta"]
    assert parse("--preset", "release", "--config", file).objective.beta == 0.2
    assert parse("--preset", "release", "--config", file, "--beta", "0.3").objective.beta == 0.3
    assert parse("--preset", "release", "--beta", "0.3").optimizer.optimizer == "rmsprop"


def test_a_run_is_repeated_by_its_dumped_configuration_alone(tmp_path):
    config = parse("--preset", "dpo", "--lr", "1e-6", "--no-prefix-sharing", "--lr-warmup-iters", "2")
    path = tmp_path / "config.json"
    path.write_text(dump_config(config), encoding="utf-8")
    assert parse_args(["--config", str(path)], world_size=1) == config


@pytest.mark.parametrize(
    ("file", "flags", "expected"),
    [
        ({"training": {"train_iters": 9}}, ["--num-epochs", "2"], {"train_iters": None, "num_epochs": 2.0}),
        ({"training": {"num_epochs": 1}}, ["--train-samples", "16"], {"num_epochs": None, "train_samples": 16}),
    ],
)
def test_a_length_given_later_replaces_one_given_earlier(tmp_path, file, flags, expected):
    config = parse_args([*RUN, "--config", write_config(tmp_path / "run.json", **file), *flags], world_size=1)
    assert {name: getattr(config.training, name) for name in expected} == expected


def test_a_kind_of_micro_batch_given_later_replaces_one_given_earlier(tmp_path):
    file = write_config(tmp_path / "run.json", training={"micro_batch_size": 2})
    training = parse("--config", file, "--micro-batch-tokens", "900").training
    assert (training.micro_batch_size, training.micro_batch_tokens) == (None, 900)


def test_a_warmup_given_later_replaces_one_given_earlier():
    optimizer = parse("--preset", "paper", "--lr-warmup-iters", "2").optimizer
    assert (optimizer.lr_warmup_fraction, optimizer.lr_warmup_iters) == (None, 2)


def test_an_option_unset_in_a_layer_does_not_unset_its_rivals():
    assert merge_layers({"train_iters": 4}, {"num_epochs": None})["train_iters"] == 4


@pytest.mark.parametrize("words", ["--learning-rate 1", "--bet 0.1", "--optimizer lion", "--train-iters 2.5", "extra"])
def test_what_is_no_flag_or_no_value_ends_with_argparse_s_code_and_is_named(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*words.split())
    assert stop.value.code == 2
    assert words.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"objectives": {}}, "unknown group 'objectives'; did you mean objective?"),
        ({"objective": {"betta": 1}}, "unknown setting of objective 'betta'; did you mean beta?"),
        ({"objective": {"lr": 1}}, "unknown setting of objective 'lr'"),
        ({"objective": {"beta": "0.1"}}, 'objective.beta must be float, got "0.1"'),
        ({"objective": {"beta": True}}, "objective.beta must be float, got true"),
        ({"training": {"train_iters": 1.0}}, "training.train_iters must be int, got 1.0"),
        ({"training": {"bf16": 1}}, "training.bf16 must be bool, got 1"),
        ({"data": {"data_path": "pairs"}}, "data.data_path must be a list of str"),
        ({"data": {"split": None}}, "data.split must be str, got null"),
        ({"objective": {"nll_scope": "none"}}, "objective.nll_scope is 'none'; choose from all, no-template, answers"),
        ({"objective": 3}, "objective must be an object"),
    ],
)
def test_a_configuration_file_is_refused_by_name(tmp_path, groups, message):
    path = write_config(tmp_path / "run.json", **groups)
    with pytest.raises(UserError) as refusal:
        parse("--config", path)
    assert message in str(refusal.value)
    assert path in str(refusal.value)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_configuration_file_that_is_missing_or_no_object_is_refused(tmp_path, content):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json"):
        parse("--config", str(path))


def test_an_int_in_a_file_is_a_float_where_the_schema_says_so(tmp_path):
    beta = parse("--config", write_config(tmp_path / "run.json", objective={"beta": 1})).objective.beta
    assert (beta, type(beta)) == (1.0, float)


def test_a_flag_without_effect_is_warned_about_once_on_rank_0_only(capsys, monkeypatch):
    parse("--adam-beta1", "0.8")
    assert capsys.readouterr().err == ""
    parse("--optimizer", "sgd", "--adam-beta1", "0.8")
    assert capsys.readouterr().err == "warning: --adam-beta1 has no effect: --optimizer is sgd\n"
    monkeypatch.setenv("RANK", "1")
    parse("--optimizer", "sgd", "--adam-beta1", "0.8")
    assert capsys.readouterr().err == ""


def test_a_preset_that_others_override_wholly_is_warned_about(capsys):
    parse("--preset", "release", "--beta", "0.2", "--optimizer", "adam")
    assert "warning: --preset release has no effect" in capsys.readouterr().err
    parse("--preset", "release", "--beta", "0.2")
    assert capsys.readouterr().err == ""


def test_the_world_size_is_torchrun_s(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(UserError, match="data-parallel size = 1 x 3"):
        parse_args([*RUN, "--train-iters", "4", "--context-parallel-size", "2"])


def test_one_group_serves_another_command():
    parser = build_parser().__class__()
    add_config_group(parser, ParallelConfig)
    namespace = parser.parse_args(["--context-parallel-size", "4"])
    assert read_config_group(namespace, ParallelConfig) == ParallelConfig(context_parallel_size=4)


def test_the_configuration_imports_no_torch():
    code = "import sys, megatron_longpo.config.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
