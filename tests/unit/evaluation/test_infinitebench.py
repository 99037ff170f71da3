from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from megatron_longpo.evaluation.infinitebench import BOOK_TASKS, BookQuestion, load_books, make_sample
from megatron_longpo.evaluation.models import Model
from megatron_longpo.evaluation.plan import Plan
from megatron_longpo.evaluation.run import evaluate
from megatron_longpo.evaluation.sample import NoRoomError
from megatron_longpo.evaluation.tokens import PromptTokens
from megatron_longpo.utils.errors import UserError
from tests.support.evaluation import Reader, write_books

TASKS = {task.name: task for task in BOOK_TASKS}


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    return write_books(tmp_path_factory.mktemp("books"))


def question(text, instruction="What is it?"):
    return BookQuestion(0, text, "b", instruction, ("x",))


BOOK = " ".join(f"Sentence {number} tells of {number * number}." for number in range(400))


@pytest.mark.parametrize("budget", [100, 357, 1024, 2500])
def test_a_book_that_is_too_long_loses_its_middle_and_nothing_else(tokenizer, budget):
    tokens = PromptTokens(tokenizer)
    sample = make_sample(question(BOOK), tokens.count, tokens.starts, budget)
    assert sample.cut
    assert sample.message.endswith("\n\nWhat is it?")
    assert budget - 3 <= sample.prompt_tokens <= budget
    assert sample.prompt_tokens == tokens.count(sample.message)
    kept = sample.message.removesuffix("\n\nWhat is it?").split("\n\n", 1)[1]
    start = next(number for number in range(len(kept), 0, -1) if BOOK.startswith(kept[:number]))
    assert BOOK.endswith(kept[start:].lstrip())
    halves = tokenizer.count_tokens([kept[:start], kept[start:]])
    assert abs(halves[0] - halves[1]) <= 6


@pytest.mark.parametrize("text", ["", "One line.", BOOK, "\u6f22\u5b57 <|im_end|>\n\n x "])
def test_prompts_are_counted_as_the_engines_encode_them(tokenizer, text):
    assert PromptTokens(tokenizer).count(text) == len(tokenizer.encode_message(text))


def test_a_book_that_fits_is_whole(tokenizer):
    tokens = PromptTokens(tokenizer)
    needed = tokens.count(make_sample(question(BOOK), tokens.count, tokens.starts, 10**6).message)
    whole = make_sample(question(BOOK), tokens.count, tokens.starts, needed)
    assert not whole.cut
    assert BOOK in whole.message
    assert make_sample(question(BOOK), tokens.count, tokens.starts, needed - 1).cut


def test_a_question_is_never_cut(tokenizer):
    tokens = PromptTokens(tokenizer)
    with pytest.raises(NoRoomError):
        make_sample(question(BOOK, "word " * 300), tokens.count, tokens.starts, 200)


def test_a_tokenizer_that_tells_no_offsets_cuts_between_words(tokenizer):
    slow = SimpleNamespace(is_fast=False)
    words = PromptTokens(
        SimpleNamespace(tokenizer=slow, render_message=tokenizer.render_message, count_tokens=tokenizer.count_tokens)
    )
    sample = make_sample(question(BOOK), words.count, words.starts, 500)
    assert 480 <= sample.prompt_tokens <= 500


def test_letters_of_several_tokens_are_not_cut_apart(tokenizer):
    tokens = PromptTokens(tokenizer)
    sample = make_sample(question("\u6f22\u5b57\U0001f600" * 300), tokens.count, tokens.starts, 300)
    assert "\ufffd" not in sample.message
    assert 290 <= sample.prompt_tokens <= 300


def test_questions_about_one_book_stand_together_and_keep_their_lines(books):
    loaded = load_books(books, TASKS["en_qa"], None)
    assert [question.index for question in loaded.questions] == [0, 2, 1, 3]
    assert len({question.book for question in loaded.questions[:2]}) == 1
    assert [question.index for question in load_books(books, TASKS["en_qa"], 3).questions] == [0, 2, 1]


def test_a_choice_shows_its_options_and_knows_its_letter(books):
    for question in load_books(books, TASKS["en_mc"], None).questions:
        text, letter = question.expected
        assert f"\n{letter}. {text}\n" in question.instruction
        assert "\n\n" not in question.instruction, "what stands above the last blank line is the book"
        assert question.instruction.count("\nA. ") == question.instruction.count("\nD. ") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": []}, "its context or its answer is empty"),
        ({"context": " "}, "its context or its answer is empty"),
        ({"answer": ["Something else"]}, "'Something else' is none of its options"),
        ({"options": ["a", "b"]}, "2 options in place of 4"),
        ({"options": None}, "not a record of En.MC"),
        ({"input": ...}, "no field 'input'"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_by_its_line(books, tmp_path, change, message):
    lines = (books / "longbook_choice_eng.jsonl").read_text().splitlines()
    record = {**json.loads(lines[1]), **change}
    lines[1] = json.dumps({name: value for name, value in record.items() if value is not ...})
    (tmp_path / "longbook_choice_eng.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"longbook_choice_eng.jsonl:2: .*{message}"):
        load_books(tmp_path, TASKS["en_mc"], None)


def test_the_models_answers_are_scored_as_published(books, tokenizer, haystack, tmp_path):
    """A reader of codes: right where the middle that was cut away does not matter."""

    def reply(message):
        if "Write a summary" in message:
            return "Book 0 has codes.\nIt is about rivers."
        if "Reply with its letter" in message:
            return "The answer is B"
        book, which = message.split("With which code does book ")[1].split("?")[0].split()
        return message.split(f"Book {book} {which}s with code ")[1].split(".")[0].split()[0]

    plan = Plan(
        seed=1, lengths=[1], samples=1, temperature=0.0, haystack=haystack, generated=[],
        books=[load_books(books, task, None) for task in BOOK_TASKS], book_length=2000, short=[], short_data=None, limit=None,
        save_prompts=False,
    )  # fmt: skip
    engine = Reader(reply=reply, group_size=8)
    model = Model(name="m", tokenizer=tokenizer, engine=engine, context_length=None, folder=None)
    found = evaluate(plan, model, tmp_path)["infinitebench"]
    scores = {name: task["score"] for name, task in found["tasks"].items()}
    # of the summary for book 1, all words but its number are right
    assert scores["en_qa"] == 100.0
    assert scores["en_mc"] == 25.0
    assert scores["en_sum"] == pytest.approx(100 * (1 + 7 / 8) / 2)
    assert found["average"] == pytest.approx(sum(scores.values()) / 3)
    assert {name: task["cut"] for name, task in found["tasks"].items()} == {"en_sum": 2, "en_qa": 0, "en_mc": 0}


def test_an_answer_counts_only_for_its_question(books, tokenizer, haystack, tmp_path):
    plan = Plan(
        seed=1, lengths=[1], samples=1, temperature=0.0, haystack=haystack, generated=[],
        books=[load_books(books, TASKS["en_qa"], None)], book_length=2000, short=[], short_data=None, limit=None,
        save_prompts=False,
    )  # fmt: skip
    model = Model(
        name="m", tokenizer=tokenizer, engine=Reader(reply=lambda message: "S017"), context_length=None,
        folder=None,
    )  # fmt: skip
    evaluate(plan, model, tmp_path)
    changed = books / "longbook_qa_eng.jsonl"
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / changed.name).write_text(
        changed.read_text().replace("With which code does book 1 end", "How does book 1 end")
    )
    plan = Plan(**{**vars(plan), "books": [load_books(tmp_path / "books", TASKS["en_qa"], None)]})
    engine = Reader(reply=lambda message: "S017")
    evaluate(plan, Model(**{**vars(model), "engine": engine}), tmp_path)
    assert len(engine.asked) == 1
