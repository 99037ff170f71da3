from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from megatron_longpo.evaluation import ruler
from megatron_longpo.evaluation.answering import Answer, hash_message
from megatron_longpo.evaluation.asking import ruler_requests
from megatron_longpo.evaluation.models import Model
from megatron_longpo.evaluation.plan import Plan
from megatron_longpo.evaluation.reading import load_hotpotqa, load_squad
from megatron_longpo.evaluation.run import evaluate
from megatron_longpo.evaluation.scores import Scored, summarise_ruler
from megatron_longpo.inference.engine import Completion
from megatron_longpo.utils.errors import UserError
from tests.support.evaluation import Reader, read_out, write_hotpotqa, write_squad


@pytest.fixture(scope="module")
def plan(tmp_path_factory, haystack):
    folder = tmp_path_factory.mktemp("qa")
    tasks = ruler.make_tasks(
        load_squad(write_squad(folder / "squad.json")), load_hotpotqa(write_hotpotqa(folder / "hotpot.json"))
    )
    return Plan(
        seed=1, lengths=[800, 1600], samples=2, temperature=0.0, haystack=haystack, generated=tasks, books=[], book_length=4096,
        short=[], short_data=None, limit=None, save_prompts=False,
    )  # fmt: skip


def model_of(tokenizer, engine):
    return Model(name="m", tokenizer=tokenizer, engine=engine, context_length=None, folder=None)


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def stable(results):
    """Without what tells of the run itself."""
    return {name: value for name, value in results.items() if name != "run"}


def test_who_reads_everything_scores_100_and_who_is_silent_0(plan, tokenizer, tmp_path):
    found = evaluate(plan, model_of(tokenizer, Reader()), tmp_path / "reader")["ruler"]
    for summary in (*found["lengths"].values(), found["mean"]):
        assert {name: task["score"] for name, task in summary["tasks"].items()} == dict.fromkeys(ruler.NAMES, 100.0)
        assert summary["groups"] == dict.fromkeys(ruler.GROUPS, 100.0)
        assert summary["average_13"]["score"] == summary["average_3"]["score"] == 100.0
        assert list(summary["average_13"]["missing"]) == []
    assert all(cell["found"] == 100.0 for cell in found["needles"])
    silent = evaluate(plan, model_of(tokenizer, Reader(reply=lambda message: "Well.")), tmp_path / "silent")["ruler"]
    assert silent["mean"]["average_13"]["score"] == 0.0


def test_a_second_run_asks_nothing_and_gives_the_same_files(plan, tokenizer, tmp_path):
    evaluate(plan, model_of(tokenizer, Reader()), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("samples.jsonl", "journal.jsonl")}
    engine = Reader()
    results = evaluate(plan, model_of(tokenizer, engine), tmp_path)
    assert engine.calls == 0
    assert results["run"]["known"] == 2 * 2 * 13
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("answers", [1, 7, 20, 51])
def test_a_run_that_was_stopped_goes_on_where_it_was(plan, tokenizer, tmp_path, answers):
    whole = evaluate(plan, model_of(tokenizer, Reader()), tmp_path / "whole")
    with pytest.raises(UserError, match="the server is out"):
        evaluate(plan, model_of(tokenizer, Reader(gives_up_after=answers)), tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "results.json").exists()
    engine = Reader()
    resumed = evaluate(plan, model_of(tokenizer, engine), tmp_path / "stopped")
    assert len(engine.asked) == 2 * 2 * 13 - answers
    assert stable(resumed) == stable(whole)
    assert (tmp_path / "stopped" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


def test_a_known_answer_stands_when_its_batch_is_run_again(plan, tokenizer, tmp_path):
    small = dataclasses.replace(plan, lengths=[800], samples=3, generated=plan.generated[:1])

    class Batches(Reader):
        def complete(self, messages, sampling, seeds, done=()):
            yield dict(enumerate(Completion(f"batch of {len(messages)}", "stop", 1) for _ in messages))

    with pytest.raises(UserError, match="the server is out"):
        evaluate(small, model_of(tokenizer, Reader(gives_up_after=1)), tmp_path)
    evaluate(small, model_of(tokenizer, Batches()), tmp_path)
    answers = [row["answer"] for row in read_lines(tmp_path / "samples.jsonl")]
    assert answers[0].isdigit()
    assert answers[1:] == ["batch of 3"] * 2


def test_requests_without_an_answer_hold_the_results_back_and_are_asked_again(plan, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"4 of 52 requests got no answer \(the first: vt/800/0: refused\)") as caught:
        evaluate(plan, model_of(tokenizer, Reader(fails=("variables hold",))), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results.json").exists()
    engine = Reader()
    evaluate(plan, model_of(tokenizer, engine), tmp_path)
    assert len(engine.asked) == 4


def test_more_samples_and_lengths_keep_the_answers_that_are_there(plan, tokenizer, tmp_path):
    evaluate(plan, model_of(tokenizer, Reader()), tmp_path)
    engine = Reader()
    evaluate(dataclasses.replace(plan, lengths=[800, 1200, 1600], samples=3), model_of(tokenizer, engine), tmp_path)
    assert len(engine.asked) == 13 * (3 * 3 - 2 * 2)


@pytest.mark.parametrize("changed", ["seed", "temperature", "engine", "tokenizer"])
def test_an_answer_counts_only_for_what_it_was_given_to(plan, tokenizer, tmp_path, changed):
    small = dataclasses.replace(plan, lengths=[800], samples=1)
    evaluate(small, model_of(tokenizer, Reader()), tmp_path)
    engine, model = Reader(), None
    if changed == "engine":
        engine.name = "another"
    elif changed != "tokenizer":
        small = dataclasses.replace(small, **{changed: 5})
    model = model_of(tokenizer, engine)
    if changed == "tokenizer":
        other = copy.copy(tokenizer)
        other.fingerprint = "another"
        model = dataclasses.replace(model, tokenizer=other)
    evaluate(small, model, tmp_path)
    assert len(engine.asked) == 13


def test_each_sample_is_kept_with_its_answer_and_its_prompt_can_be_made_again(plan, tokenizer, tmp_path):
    engine = Reader()
    evaluate(plan, model_of(tokenizer, engine), tmp_path)
    rows = read_lines(tmp_path / "samples.jsonl")
    assert [row["answer"] for row in rows] == [read_out(message) for message in engine.asked]
    assert [row["prompt_sha256"] for row in rows] == [hash_message(message) for message in engine.asked]
    assert all(message.endswith(row["question"]) for row, message in zip(rows, engine.asked, strict=True))
    again = Reader()
    evaluate(dataclasses.replace(plan, save_prompts=True), model_of(tokenizer, again), tmp_path)
    assert again.asked == []
    prompts = read_lines(tmp_path / "prompts.jsonl")
    assert [prompt["message"] for prompt in prompts] == engine.asked


def test_a_prompt_that_is_made_otherwise_than_when_it_was_answered_is_not_written(plan, tokenizer, tmp_path, monkeypatch):
    small = dataclasses.replace(plan, lengths=[800], samples=1)
    evaluate(small, model_of(tokenizer, Reader()), tmp_path)
    monkeypatch.setattr("megatron_longpo.evaluation.tracking.INTRODUCTION", "Another wording.")
    with pytest.raises(UserError, match=r"vt/800/0/\w+: its prompt is not made as when it was answered"):
        evaluate(dataclasses.replace(small, save_prompts=True), model_of(tokenizer, Reader()), tmp_path)


def test_what_does_not_fit_is_said_before_anything_is_asked(plan, tokenizer, tmp_path):
    engine = Reader()
    with pytest.raises(UserError, match=r"does not fit into 200 tokens; its shortest prompt has \d+.*give at least \d+"):
        evaluate(dataclasses.replace(plan, lengths=[200, 800]), model_of(tokenizer, engine), tmp_path)
    assert engine.asked == []


def test_threads_ask_all_and_nothing_twice(plan, tokenizer, tmp_path):
    engine = Reader(concurrency=5, group_size=1)
    found = evaluate(plan, model_of(tokenizer, engine), tmp_path)
    assert len(engine.asked) == len(set(engine.asked)) == 52
    assert found["ruler"]["mean"]["average_13"]["score"] == 100.0


def test_short_prompts_are_asked_first(plan, tokenizer):
    lengths = [request.length for request in ruler_requests(plan, model_of(tokenizer, Reader()))]
    assert lengths == sorted(lengths)


# --- numbers


def scored(task, score, *, length=1024, answer="", needles=(), index=0, reason="stop"):
    kept = Answer(
        answer=answer, finish_reason=reason, answer_tokens=1, prompt_tokens=1, prompt_sha256="", question="", expected=["x"],
        needles=needles,
    )  # fmt: skip
    return Scored(task=task, length=length, index=index, answer=kept, score=score)


def test_a_tasks_mean_has_its_standard_error_and_its_count_of_cut_off_answers():
    rows = [scored("vt", score, index=place) for place, score in enumerate((1.0, 0.0, 0.5, 0.5))]
    rows.append(scored("vt", 1.0, reason="length"))
    task = summarise_ruler(rows)["lengths"]["1024"]["tasks"]["vt"]
    assert task["score"] == pytest.approx(60.0)
    assert task["stderr"] == pytest.approx(41.833 / 5**0.5, abs=1e-3)
    assert (task["samples"], task["cut_off"]) == (5, 1)
    assert summarise_ruler(rows[:1])["lengths"]["1024"]["tasks"]["vt"]["stderr"] is None


def test_the_heatmap_counts_each_needle_asked_for_where_it_stands():
    needles = [["111", 0.05, True], ["222", 0.95, True], ["333", 0.5, False], ["444", 1.0, True]]
    rows = [scored("niah_multivalue", 0.5, answer="111, 333 and 444", needles=needles)]
    found = summarise_ruler(rows)["needles"]
    assert found == [
        {"length": 1024, "depth": 0.0, "found": 100.0, "count": 1},
        {"length": 1024, "depth": 0.9, "found": 50.0, "count": 2},
    ]


def test_means_over_lengths_weigh_lengths_alike_and_leave_out_tasks_that_one_lacks():
    rows = [
        *(scored("vt", 1.0, length=1024, index=place) for place in range(3)),
        scored("vt", 0.0, length=2048),
        scored("cwe", 1.0, length=1024),
    ]
    mean = summarise_ruler(rows)["mean"]
    assert mean["tasks"].keys() == {"vt"}
    assert mean["average_13"]["score"] == pytest.approx(50.0)
    assert set(mean["average_13"]["missing"]) == set(ruler.NAMES) - {"vt"}
