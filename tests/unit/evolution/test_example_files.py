"""The files in examples/ are planned without their models being there, and train as the examples' scripts do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_longpo.config.cli import parse_args
from megatron_longpo.config.schema import RunConfig
from megatron_longpo.evolution.config import Config, read_config
from megatron_longpo.evolution.plan import Plan
from tests.support.recorded_commands import ROOT, read_command, recorded_commands

FILES = sorted(path for path in ROOT.glob("examples/**/*.y*ml") if "rounds:" in path.read_text(encoding="utf-8"))
SCRIPTS = [
    ("mistral_7b", "128k", "bash examples/mistral_7b_128k/train.sh"),
    ("mistral_7b", "256k", "bash examples/continue_256k_512k/train.sh 256k"),
    ("mistral_7b", "512k", "bash examples/continue_256k_512k/train.sh 512k"),
    ("qwen2.5_7b", "128k", "bash examples/qwen2.5_7b_128k/train.sh"),
]


@pytest.fixture
def plan(plan_of: Callable[[Config], Plan], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Plan]:
    monkeypatch.chdir(ROOT)
    return lambda path: plan_of(read_config(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_planned_without_its_model_and_warns_of_nothing(plan: Callable[[Path], Plan], path: Path) -> None:
    found = plan(path)
    assert found.warnings == ()
    assert found.stages[-1].kind == "decide"


def test_there_are_files_to_plan() -> None:
    assert {"mistral_7b", "qwen2.5_7b"} <= {path.stem for path in FILES}


def without_places(config: RunConfig) -> RunConfig:
    """A configuration without its folders."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, pretrained_checkpoint=None),
        data=dataclasses.replace(config.data, data_path=()),
        checkpoint=dataclasses.replace(config.checkpoint, save=None, load=None),
    )


@pytest.mark.parametrize(("file", "name", "script"), SCRIPTS)
def test_a_round_trains_as_the_script_of_its_example(
    plan: Callable[[Path], Plan], tmp_path: Path, file: str, name: str, script: str
) -> None:
    (command,) = recorded_commands(script, tmp_path)
    stage = next(one for one in plan(ROOT / f"examples/self_evolution/{file}.yaml").stages if one.name == f"{name}/train")
    ours = read_command(list(stage.command))
    found, expected = (parse_args(flags, world_size=16) for flags in (ours.flags, command.flags))
    assert without_places(found) == without_places(expected)


def test_the_paper_s_512k_goes_back_to_the_128k_model(plan: Callable[[Path], Plan]) -> None:
    commands = {stage.name: " ".join(stage.command) for stage in plan(ROOT / "examples/self_evolution/mistral_7b.yaml").stages}
    assert "--model runs/mistral_7b_rounds/128k/exported" in commands["512k/generate"]
    assert "--pretrained-checkpoint runs/mistral_7b_rounds/128k/native" in commands["512k/train"]
    assert "256k/convert" not in commands
