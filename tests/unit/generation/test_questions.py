import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.generation.questions import parse_questions

TRICKY = [
    "What changed in Europe after 1945?",
    "How does GPT-3.5 differ from GPT-4 here?",
    "What does section 2.1 say about names?",
    "Which of the 3 rules is broken first, and why?",
    "Is the ratio 2: 1 or 3: 1 in the example?",
    "Explain how step 1. and step 2. depend on each other.",
]
WORDS = st.sampled_from(
    ["what", "1945?", "GPT-3.5", "section", "2.1", "(3)", "4:", "1.", "why", "between", "the rules", "x = 2."]
)
QUESTIONS = st.lists(WORDS, min_size=0, max_size=8).map(lambda words: " ".join(["How many things", *words, "remain?"]))
STYLES = [
    "{n}. {q}",
    "{n}) {q}",
    "{n}: {q}",
    "  {n}. {q}  ",
    "**{n}.** {q}",
    "**{n}. {q}**",
    "Question {n}: {q}",
    "Q{n}. {q}",
    '"{n}. {q}"',
]


@pytest.mark.parametrize("style", STYLES)
def test_numbers_inside_questions_neither_split_nor_count(style: str) -> None:
    text = "Here are the questions:\n" + "\n".join(style.format(n=n, q=q) for n, q in enumerate(TRICKY, start=1))
    assert parse_questions(text, finished=True) == TRICKY


@given(st.lists(QUESTIONS, min_size=1, max_size=12), st.sampled_from(STYLES), st.booleans())
def test_a_numbered_list_comes_back_whole(questions: list[str], style: str, spaced: bool) -> None:
    lines = [style.format(n=n, q=q) for n, q in enumerate(questions, start=1)]
    assert parse_questions(("\n\n" if spaced else "\n").join(lines), finished=True) == questions


def test_a_question_may_run_over_lines_and_may_hold_a_line_that_starts_with_a_number() -> None:
    first, second = "1. What happened between\n1939 and\n1945. And who says so?", "2. Why is section\n2.1 of the text short?"
    text = f"{first}\n{second}\n\nI hope this helps!"
    assert parse_questions(text, finished=True) == [
        "What happened between 1939 and 1945. And who says so?",
        "Why is section 2.1 of the text short?",
    ]


def test_an_answer_after_the_question_is_left_out() -> None:
    text = "1. What is the purpose of repr()? It computes a string.\n2. **Question:** Which names are bound?"
    assert parse_questions(text, finished=True) == ["What is the purpose of repr()?", "Which names are bound?"]


def test_the_item_that_the_limit_cut_off_is_left_out() -> None:
    text = "1. What is a name in Python?\n2. How does the scope of a"
    assert parse_questions(text, finished=False) == ["What is a name in Python?"]
    assert len(parse_questions(text, finished=True)) == 2
    assert parse_questions("1. How does the scope of a", finished=False) == []


def test_bullets_count_where_nothing_is_numbered() -> None:
    assert parse_questions("Sure!\n- What is a name?\n* Why is it bound?\n- A remark.", finished=True) == [
        "What is a name?",
        "Why is it bound?",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        "Sure! What would you like to know?",
        "1945. 2. 3.",
        "2. Starts with the second?",
        "1. 2. 3. 4?",
    ],
)
def test_output_without_a_question_gives_none(text: str) -> None:
    assert parse_questions(text, finished=True) == []


@given(st.text(max_size=300), st.booleans())
def test_any_text_gives_questions_on_one_line_that_come_from_it(text: str, finished: bool) -> None:
    for question in parse_questions(text, finished=finished):
        assert question == " ".join(question.split())
        assert question in " ".join(text.split())
