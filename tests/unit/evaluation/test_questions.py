"""A user's own questions: their file, how they are asked together, their scores."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.evaluation.asking import QUESTIONS_TOGETHER, question_requests
from megatron_longpo.evaluation.models import Model
from megatron_longpo.evaluation.plan import Plan
from megatron_longpo.evaluation.questions import (
    METRICS,
    OwnQuestion,
    QuestionError,
    QuestionFile,
    QuestionTask,
    load_questions,
    read_question,
)
from megatron_longpo.evaluation.report import write_reports
from megatron_longpo.evaluation.run import evaluate
from megatron_longpo.generation.prompts import join_context
from megatron_longpo.utils.errors import UserError
from tests.support.evaluation import Reader


def write(path, *records):
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def task_of(*questions, metric="contains", name="own"):
    file = QuestionFile(name=name, sha256="0", questions=questions)
    return QuestionTask(file=file, metric=metric, answer_tokens=8)


def question(index, text="Which?", context="", answers=("amber",), group=None):
    return OwnQuestion(index=index, context=context, text=text, answers=tuple(answers), group=group)


@pytest.fixture(scope="module")
def plan(haystack):
    return Plan(
        seed=1, lengths=[800], samples=1, temperature=0.0, haystack=haystack, generated=[], books=[], book_length=4096, short=[],
        short_data=None, limit=None, save_prompts=False,
    )  # fmt: skip


@pytest.fixture
def ask(plan, tokenizer, tmp_path):
    """Evaluates tasks with an engine, in one folder."""

    def call(engine, *tasks, folder=tmp_path / "m"):
        model = Model(name="m", tokenizer=tokenizer, engine=engine, context_length=None, folder=None)
        return evaluate(dataclasses.replace(plan, questions=tasks), model, folder)

    return call


def rows_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


# --- the file

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FILLED = TEXTS.filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    context=st.none() | TEXTS, text=FILLED, answers=FILLED | st.lists(FILLED, min_size=1, max_size=4), group=st.none() | FILLED,
    identity=st.none() | TEXTS | st.integers(), index=st.integers(0, 10),
)  # fmt: skip
def test_what_is_written_is_read(context, text, answers, group, identity, index):
    record = {"context": context, "question": text, "answers": answers, "group": group, "id": identity, "metadata": {"a": [1]}}
    whole = read_question(json.dumps(record).encode(), index)
    expected = (answers,) if isinstance(answers, str) else tuple(answers)
    assert whole == OwnQuestion(index=index, context=context or "", text=text, answers=expected, group=group, id=identity)
    given = {name: value for name, value in record.items() if value is not None}
    assert read_question(json.dumps(given, ensure_ascii=False).encode(), index) == whole


NAMES = st.sampled_from(["context", "question", "answers", "group", "id", "metadata", "other"])


@given(st.dictionaries(NAMES, JSON | FILLED).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
def test_any_other_line_is_refused_in_one_short_line(line):
    try:
        found, refusal = read_question(line, 0), ""
    except QuestionError as error:
        found, refusal = None, str(error)
    assert "\n" not in refusal
    assert len(refusal) <= 303
    if found is not None:
        assert found.text.strip()
        assert found.answers
        assert all(answer.strip() for answer in found.answers)


def test_blank_lines_are_passed_over_and_lines_keep_their_numbers(tmp_path):
    record = json.dumps({"question": "q", "answers": "a"})
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{record}\n\n  \n{record}".encode())
    assert [one.index for one in load_questions("own", path).questions] == [0, 3]
    assert len(load_questions("own", path, limit=1).questions) == 1


def test_equal_contexts_are_held_once(tmp_path):
    records = [{"context": "long " * 100, "question": str(number), "answers": "a"} for number in range(3)]
    first, *others = load_questions("own", write(tmp_path / "own.jsonl", *records)).questions
    assert all(other.context is first.context for other in others)


GOOD = {"question": "q", "answers": ["a"]}
BAD = [
    ("{", "not a JSON object in UTF-8 (Expecting property name"),
    (b"\xff", "not a JSON object in UTF-8"),
    ("[" * 100_000, "not a JSON object in UTF-8"),
    ("[]", "expected an object, found an empty list"),
    ('{"question": "a", "question": "b", "answers": "a"}', "not a JSON object in UTF-8 (the field 'question' occurs twice)"),
    ({"answers": "a"}, "question: is missing"),
    ({"question": "a"}, "answers: is missing"),
    ({**GOOD, "contex": "a"}, "contex: unknown field; there are context, question, answers, group, id"),
    ({**GOOD, "question": " "}, "question: is blank"),
    ({**GOOD, "question": 3}, "question: expected a string, found a number"),
    ({**GOOD, "answers": []}, "answers: expected a string or a list of strings, found an empty list"),
    ({**GOOD, "answers": {"a": 1}}, "answers: expected a string or a list of strings, found an object"),
    ({**GOOD, "answers": ["a", 2]}, "answers: expected a string, found a number"),
    ({**GOOD, "answers": ""}, "answers: is blank"),
    ({**GOOD, "context": ["a"]}, "context: expected a string, found a list"),
    ({**GOOD, "context": False}, "context: expected a string, found a boolean"),
    ({**GOOD, "context": "\ud800"}, "context: holds half of a surrogate pair"),
    ({**GOOD, "group": 8}, "group: expected a string, found a number; write it in quotes"),
    ({**GOOD, "group": ""}, "group: is blank"),
    ({**GOOD, "id": 1.5}, "id: expected a string or a whole number, found a number"),
    ({**GOOD, "id": True}, "id: expected a string or a whole number, found a boolean"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_line_is_named_with_its_field_and_a_cure(tmp_path, line, message):
    text = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    path = tmp_path / "own.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + text + b"\n")
    with pytest.raises(UserError) as caught:
        load_questions("own", path)
    assert str(caught.value).startswith(f"{path}:3: {message}")
    assert ";" in str(caught.value)


def test_a_file_that_is_absent_or_empty_is_refused(tmp_path):
    with pytest.raises(UserError, match="No such file or directory; give a JSON Lines file"):
        load_questions("own", tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="holds no question; write one JSON object a line"):
        load_questions("own", write(tmp_path / "own.jsonl"))


# --- how they are asked


def test_a_question_is_put_to_the_model_as_in_the_pairs():
    assert question(0, "Which?", "A text.").message == join_context("A text.", "Which?") == "A text.\n\nWhich?"
    assert question(0, "Which?").message == "Which?"


class Calls(Reader):
    """Remembers what was asked together."""

    def __init__(self, **fields):
        super().__init__(reply=lambda message: "amber", **fields)
        self.groups = []

    def complete(self, messages, sampling, seeds, done=()):
        self.groups.append(list(messages))
        yield from super().complete(messages, sampling, seeds, done)


def test_questions_about_a_long_text_are_asked_together_in_mixed_files_too(ask):
    texts = [f"Book {number}. " + "river stone " * 600 for number in range(3)]
    questions = [question(place, f"Which, {place}?", texts[place % 3]) for place in range(12)]
    engine = Calls()
    ask(engine, task_of(*questions))
    assert engine.groups == [[one.message for one in questions if one.context == text] for text in texts]


def test_questions_about_short_texts_share_calls_the_shortest_first(ask):
    questions = [question(place, "Which?", "river " * (1 + 7 * place % 50) + str(place)) for place in range(150)]
    engine = Calls(group_size=2)
    ask(engine, task_of(*questions))
    assert [len(group) for group in engine.groups] == [2 * QUESTIONS_TOGETHER, 2 * QUESTIONS_TOGETHER, 22]
    lengths = [len(message) for group in engine.groups for message in group]
    assert sorted(lengths)[::50] == pytest.approx(lengths[::50], abs=3)


def test_what_is_left_out_is_nothing_and_samples_come_in_the_files_order(ask, tmp_path):
    long = "A long one. " + "river stone " * 2000
    first = [question(place, f"Which, {place}?", long if place % 3 else "short " * (9 - place)) for place in range(9)]
    second = [question(place, f"Who, {place}?") for place in range(4)]
    found = ask(Calls(), task_of(*first), task_of(*second, name="other"))
    assert {name: summary["samples"] for name, summary in found["questions"].items()} == {"own": 9, "other": 4}
    assert [(row["task"], row["index"]) for row in rows_of(tmp_path / "m")] == [
        *(("own", place) for place in range(9)),
        *(("other", place) for place in range(4)),
    ]


def test_lengths_count_the_prompt_and_the_room_for_the_answer(plan, tokenizer):
    own = task_of(question(0, "Which?", "river stone " * 30), question(1, "Which?"))
    model = Model(name="m", tokenizer=tokenizer, engine=Reader(), context_length=None, folder=None)
    for request in question_requests(dataclasses.replace(plan, questions=[own]), model):
        assert request.length - own.answer_tokens == pytest.approx(request.make().prompt_tokens, abs=2)


# --- scores


def test_scores_are_those_of_the_metric_for_the_file_and_each_group(ask):
    questions = [
        question(0, "a", answers=["Amber", "stone"], group="16x"),
        question(1, "b", answers=["amber  RIVER"], group="16x"),
        question(2, "c", answers=["lamp"], group="2x"),
        question(3, "d", answers=["the amber river"]),
    ]
    engine = Reader(reply=lambda message: "amber river")
    wanted = {"contains": (50.0, 0.0, 0.0, 0.0), "exact": (0.0, 100.0, 0.0, 0.0), "f1": (200 / 3, 100.0, 0.0, 100.0)}
    for metric, scores in wanted.items():
        found = ask(engine, task_of(*questions, metric=metric))["questions"]["own"]
        assert found["metric"] == metric
        assert found["score"] == pytest.approx(sum(scores) / 4)
        assert {name: group["samples"] for name, group in found["groups"].items()} == {"2x": 1, "16x": 2}
        assert list(found["groups"]) == ["2x", "16x"], "in the order of their numbers"
        assert found["groups"]["16x"]["score"] == pytest.approx(sum(scores[:2]) / 2)
        assert found["groups"]["16x"]["stderr"] == pytest.approx(abs(scores[0] - scores[1]) / 2)
        assert found["groups"]["2x"]["stderr"] is None
    assert len(engine.asked) == 4, "another metric asks nothing again"


@pytest.mark.parametrize(
    ("metric", "answer", "expected", "score"),
    [
        ("exact", " Amber\n River ", ["stone", "amber river"], 1.0),
        ("exact", "amber river.", ["amber river"], 0.0),
        ("exact", "", ["amber"], 0.0),
        ("contains", "I say AMBER.", ["amber", "stone"], 0.5),
        ("f1", "The amber, river", ["amber"], 2 / 3),
    ],
)
def test_a_metric_scores_an_answer(metric, answer, expected, score):
    assert METRICS[metric].score(answer, expected) == pytest.approx(score)


@pytest.mark.parametrize("answers", [1, 5, 9])
def test_a_run_that_was_stopped_goes_on_where_it_was(ask, tmp_path, answers):
    questions = [question(place, f"Which, {place}?", "river " * (place % 4), group=str(place % 3)) for place in range(10)]
    whole = ask(Calls(), task_of(*questions), folder=tmp_path / "whole")
    with pytest.raises(UserError, match="the server is out"):
        ask(Calls(gives_up_after=answers), task_of(*questions))
    engine = Calls()
    resumed = ask(engine, task_of(*questions))
    assert len(engine.asked) == 10 - answers
    assert resumed["questions"] == whole["questions"]
    assert (tmp_path / "m" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


def test_mended_answers_are_scored_without_asking_and_other_words_are_asked_again(ask):
    engine = Calls()
    assert ask(engine, task_of(question(0, answers=["stone"])))["questions"]["own"]["score"] == 0.0
    assert ask(engine, task_of(question(0, answers=["amber"])))["questions"]["own"]["score"] == 100.0
    assert len(engine.asked) == 1
    ask(engine, task_of(question(0, text="Who?")))
    ask(engine, dataclasses.replace(task_of(question(0)), answer_tokens=9))
    assert len(engine.asked) == 3


# --- reports


def test_the_report_shows_each_group_with_its_count_in_all_its_forms(ask, tmp_path):
    questions = [question(place, f"Which, {place}?", answers=[["amber"], ["no"]][place % 2], group="8x") for place in range(4)]
    ask(Calls(), task_of(*questions, question(4)))
    lines = "\n".join(write_reports(tmp_path))
    assert "Questions: own" in lines
    assert "m  50.0 ±28.9  60.0 ±24.5" in lines
    note = "m: share of the right answers that occur in the answer; 5 questions (8x: 4), 0 answers cut off by their limit."
    assert note in lines
    markdown, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    assert "| m | 50.0 ±28.9 | 60.0 ±24.5 |" in markdown
    for text in (note, "Questions by group", "<svg", "m: 3 samples"):
        assert text in page
    assert note in markdown
