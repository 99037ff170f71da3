"""docs/memory.md shows what the estimates are now, beside measurements that they predict; and a measurement made here agrees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.memory_prediction import CASES, measure, predict
from tools.render_memory_docs import PAGE, render

TEXT = PAGE.read_text(encoding="utf-8")
ROW = re.compile(r"^\| (.+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|$", re.MULTILINE)


def test_the_page_s_tables_are_what_the_tool_prints() -> None:
    assert TEXT.count("$ python tools/estimate_memory.py") == 4
    assert render(TEXT) == TEXT, "run python tools/render_memory_docs.py"


def test_a_stale_page_is_seen() -> None:
    assert render(TEXT.replace("fastest first", "slowest first")) == TEXT


def test_every_measured_peak_is_predicted_within_15_percent() -> None:
    rows = {found[1]: found for found in ROW.finditer(TEXT)}
    assert rows.keys() == {case.says for case in CASES.values()}
    for case in CASES.values():
        predicted, measured = int(rows[case.says][4]), int(rows[case.says][5])
        assert predicted == round(predict(case) / 2**20), "measure again: python -m benchmarks.memory_prediction"
        assert abs(predicted / measured - 1) <= 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["short", "full"])
def test_a_peak_measured_here_is_near_its_prediction(name: str) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no Linux /proc to measure with")
    assert predict(CASES[name]) == pytest.approx(measure(name), rel=0.25)
