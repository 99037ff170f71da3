"""The contests on a tiny model, in fresh processes as the commands run them; nothing is said about their times."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import head, preprocess, step
from benchmarks.contest import MAKE_BENCH, run_contest
from benchmarks.jobs import Bench
from benchmarks.problem import ModelShape

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TINY = dataclasses.replace(
    MAKE_BENCH,
    lengths=((64, 2),),
    memory=(64,),
    head=(64, 1000, 1),
    model=ModelShape(hidden=64, ffn=96, layers=2, heads=4, kv_heads=2, vocab=320),
    answer=16,
    short=32,
    threads=1,
)


def test_steps_agree_and_rows_hold_what_was_measured(tmp_path: Path) -> None:
    rows = run_contest("step", step.against_two_pass, Bench(tmp_path), TINY)
    assert [row.contest for row in rows] == ["step", "efficiency", "efficiency"]
    time = rows[0]
    assert time.ratio == time.ours / time.other > 0
    assert [len(samples) for samples in time.details["samples"]] == [2, 2]
    ours, theirs = time.details["loss"]
    assert ours == pytest.approx(theirs, rel=1e-5)
    kept = json.loads((tmp_path / "step.json").read_text())
    again = run_contest("step", step.against_two_pass, Bench(tmp_path), TINY)
    assert [row.to_json() for row in again] == kept, "measured again"


def test_the_heads_agree_and_whole_logits_take_more(tmp_path: Path) -> None:
    memory, time = head.contest(Bench(tmp_path), TINY)
    assert (memory.quantity, time.quantity) == ("peak memory", "CPU time")
    assert memory.other > 0
    assert time.ratio == time.ours / time.other > 0


def test_preprocessing_and_the_batch_encoder_give_the_same_ids(tmp_path: Path) -> None:
    cpu, wall, once, _ = preprocess.compare(Bench(tmp_path), 1 << 20, 1, 1)
    assert (cpu.quantity, wall.quantity) == ("tokens a CPU-second", "tokens a second")
    (ours,), (raw,), (short,) = cpu.details.values()
    assert ours["digest"] == raw["digest"]
    assert short["tokens"] < 0.6 * raw["tokens"], "the repetitions are still there"
    assert once.other == ours["tokens"] / short["cpu"]
    assert cpu.other == raw["tokens"] / raw["cpu"]
    assert ours["cpu"] > 1, "the workers' time is missing: loading a tokenizer alone takes more"
