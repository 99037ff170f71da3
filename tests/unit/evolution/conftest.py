"""Files for the loop, written and planned with the commands' real parsers."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_longpo.evolution.config import Config, read_config
from megatron_longpo.evolution.plan import Plan
from tests.support.recorded_commands import ROOT


@pytest.fixture(scope="session")
def plan_of() -> Callable[[Config], Plan]:
    """The command's own way from a file to stages."""
    found: Callable[[Config], Plan] = runpy.run_path(str(ROOT / "tools" / "self_evolve.py"))["plan_of"]
    return found


@pytest.fixture
def planned(tmp_path: Path, plan_of: Callable[[Config], Plan], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Plan]:
    """Plan a file of this text."""
    monkeypatch.chdir(ROOT)

    def plan(text: str) -> Plan:
        path = tmp_path / "rounds.yaml"
        path.write_text(text, encoding="utf-8")
        return plan_of(read_config(path))

    return plan
