import random
import time
import unicodedata
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.generation.filters import (
    FILTERS,
    FilterSettings,
    Side,
    check_answer,
    check_pair,
    count_words,
    repeats_question,
)
from megatron_longpo.generation.phrases import (
    BEFORE_NOT_TOLD,
    DECLINES,
    NOT_TOLD,
    SPEAKS_AS_AI,
    compile_patterns,
    is_refusal,
    is_untold,
    sentences_of,
)
from megatron_longpo.generation.repetition import DENSE_RUN, MAX_CHARACTERS, RUN, repeated_share
from megatron_longpo.utils.errors import UserError

SETTINGS = FilterSettings()
SIDES = get_args(Side)
ANY_TEXT = st.text(st.characters(), max_size=400)
"""Lone surrogates too: JSON may spell them."""

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, but I\u2019m not able to provide an answer to this question.",
    "I cannot answer this question.",
    "Sorry, I cannot.",
    "I can't do that.",
    "I am unable to answer that question based on the text.",
    "I apologize, but I cannot fulfill your request.",
    "I must decline to answer that.",
    "I'm not comfortable discussing this topic.",
    "It would not be appropriate for me to speculate.",
    "Thank you for your question, but I won't be able to answer it.",
    "That is an interesting question, but I cannot comment on it.",
    "**Answer:** I can't help you with this.",
    "Unfortunately, I do not have access to the full text of the novel.",
    "I do not have the ability to access external links.",
    "Please provide the text you would like me to analyze.",
    "I would be happy to help! Could you please provide me with more context?",
    "I'm sorry, but I need more context to answer this question.",
    "How can I assist you today?",
    "Hello! I'm happy to help you understand the novel.",
    "As an AI language model, I do not have personal opinions.",
    "I'm sorry, but as an AI I cannot know that.",
    "I'm a large language model trained to help.",
    "I am just an AI and have never been to Bath.",
    "I don't have personal opinions or beliefs.",
    "I was trained on a large body of text.",
    "My training data does not reach that far.",
    "Emma is proud and likes to make matches for others. She learns. As an AI, I don't have feelings about her.",
]
NOT_REFUSALS = [
    'Darcy says "I cannot answer that question" and leaves the room.',
    "\"I'm sorry, but I can't help you,\" Emma replies to Harriet.",
    "\u2018I can\u2019t help you,\u2019 she says, and turns away.",
    "The reply is `I am unable to answer`, which the parser rejects.",
    "> I cannot answer that question.\nThe line above is the hermit's reply.",
    "```\nraise ValueError('Sorry, I cannot help with that request')\n```\nraises an error.",
    "She says that she cannot help with the party.",
    "He is sorry, but he can't give an answer yet.",
    "I cannot help loving him, she thinks.",
    "I cannot answer for the behaviour of others, says the colonel.",
    "Unfortunately, Emma cannot help Harriet with her letter.",
    "The function cannot answer a request without a key.",
    "The robot refuses to answer, as an AI of that time would.",
    "As an AI researcher, Minsky worked at MIT.",
    "I was trained by monks, the traveller tells them.",
    "He needs more information from the court.",
    "Please note that the lock must be held while the document is read.",
    "The captain wants to know four things. He asks first. The sailor tells three of them. I cannot answer the last, says he.",
]

UNTOLD = [
    "The text does not mention why Emma left.",
    "The passage does not provide any information about his father.",
    "The context you provided does not contain enough information to answer the question.",
    "Unfortunately, the provided excerpt doesn't say who wrote the letter.",
    "I'm sorry, but the text does not tell us.",
    "Based on the given text, it is not possible to determine the answer.",
    "According to the text, there is no mention of a dog.",
    "There is not enough information in the passage to answer this question.",
    "In the text, it is never explicitly stated why he left.",
    "It is not stated in the text.",
    "The answer cannot be found in the passage.",
    "The question cannot be answered from the context provided.",
    "It is unclear from the text what she wants.",
    "No information is given about that.",
    "Not mentioned.",
    "Insufficient information.",
    "The text makes no mention of a dog.",
    "The excerpt says nothing about the king.",
    "Nothing in the text says where he lived.",
    "There isn't any information about his mother in the text.",
    "The answer to your question is not in the text.",
    "The reason for his departure is not explained in the excerpt.",
    "I don't know.",
    "I'm not sure.",
    "I could not find the answer in the text.",
    "Unknown.",
    "N/A",
    "The author does not explain this. Therefore, it is impossible to say.",
    "The text does not specify what happened to the dog. It only describes the house.",
]
TOLD = [
    "The text does not explicitly state why, but it suggests that he was afraid.",
    "The text does not state it outright. However, the narrator's tone suggests that Emma is jealous.",
    "The text does not name him. The man at the gate wears the grey coat that Frank bought in town on Monday, carries the same "
    "stick, and answers to the same whistle.",
    "The author does not mention the war because he wants to speak of home.",
    "No, the text does not mention a dog.",
    "Python does not specify the order of evaluation of these.",
    "The letter does not mention the money.",
    "It is not known to Emma that Frank is engaged.",
    "The name is not found in any scope, and NameError is raised.",
    "He does not know the answer.",
    "Nobody knows.",
    "The treasure is not found.",
    "The book has no pages left.",
    "The lock is not in the document list.",
    "It says nothing, and he goes home.",
    "Nothing in the room moved.",
    "There is no hope for him.",
    "The story does not give Emma an easy path.",
    "No details are spared in the account of the ball.",
    '"I don\'t know," says Emma, and this shows her doubt.',
    "The unknown man is Frank.",
]

LOOPS = [
    "the the the",
    "The cat is the the the the the the the the the the the the the",
    "no no no no no no no no",
    "hahahahahahahahahahahahahahahahahaha",
    "He went home. He went home. He went home. He went home.",
    "The function returns the value of the name.\n" * 6,
    "1. It is important to read the text closely.\n2. It is important to read the text closely.\n"
    "3. It is important to read the text closely.\n4. It is important to read the text closely.",
    "Emma is rich and clever, lives with her father at Hartfield and likes to make matches for other people. " * 2,
    "他说他不知道。" * 8,
    "東京は日本の首都です。東京は日本の首都です。東京は日本の首都です。",
    "ประเทศไทยมีเมืองหลวง" * 5,
    "Она ушла домой вечером. " * 5,
    "हिन्दी में एक वाक्य है। " * 6,
]
NO_LOOPS = [
    "",
    "Paris",
    "banana",
    "2000000",
    "New York, New York",
    "Mississippi",
    "The rise and fall of the empire is told twice: the rise in the first book and the fall in the second.",
    "The capital of France is Paris. The capital of Spain is Madrid. The capital of Italy is Rome.",
    "- Name: Emma Woodhouse\n- Age: twenty-one\n- Home: Hartfield\n- Name: Harriet Smith\n- Age: seventeen\n- Home: Highbury",
    "1. The first rule is that a name must be bound.\n2. The second rule is that a bound name may be deleted.\n"
    "3. The third rule is that a deleted name may be bound again.\n4. The fourth rule is that scopes nest.",
    "| year | ships | men |\n|---|---|---|\n| 1801 | 12 | 400 |\n| 1802 | 14 | 420 |\n| 1803 | 17 | 512 |",
    "Come, wind, and carry,\ncome, wind, and blow,\nover the sea\nwherever you go.\n\nBring me the harbour,\nbring me snow,"
    "\ncome, wind, and carry,\ncome, wind, and blow.\n\nWho waits at the window,\nwho keeps the lamp low?\nCome, wind,"
    " and carry\nher where I go.",
    "for i in range(10):\n    for j in range(10):\n        total = total + table[i][j]\nreturn total / 100",
    "东京是日本的首都\uff0c北京是中国的首都\uff0c首尔是韩国的首都\uff0c三座城市都有悠久的历史。",
]


def check(text: str, side: Side = "chosen", finish_reason: str = "stop", num_tokens: int = 9, **keywords) -> str | None:
    settings = keywords.pop("settings", SETTINGS)
    return check_answer(text, side, finish_reason=finish_reason, num_tokens=num_tokens, settings=settings, **keywords)


def without(name: str) -> FilterSettings:
    return FilterSettings(enabled=frozenset(FILTERS) - {name})


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_falls_on_both_sides(text: str, side: Side) -> None:
    assert check(text, side) == "refusal"


@pytest.mark.parametrize("text", NOT_REFUSALS)
def test_words_of_a_refusal_in_another_mouth_are_none(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize("text", UNTOLD)
def test_an_answer_that_nothing_is_told_falls_when_it_is_chosen(text: str) -> None:
    assert check(text, settings=FilterSettings(enabled=frozenset({"no_answer"}))) == "no_answer"
    assert check(text, "rejected", settings=without("too_short")) != "no_answer"


@pytest.mark.parametrize("text", TOLD)
def test_an_answer_that_tells_something_beside_what_is_not_told_stays(text: str) -> None:
    assert not is_untold(text)


def test_that_nothing_is_told_may_be_the_answer() -> None:
    answer = "The text does not mention the cost of the ships."
    assert check(answer, question="What does the minister say about the cost?") == "no_answer"
    assert check(answer, question="What does the report leave out?") is None
    assert check(answer, question="Which cost isn't mentioned?") is None
    assert check(answer, question="Why did the ships not sail?") == "no_answer"


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Why does Emma leave the ball?", "Why does Emma leave the ball?"),
        ("  why does EMMA leave the ball ", "Why does Emma leave the ball?"),
        ("**Why does Emma leave the ball?**", "Why does Emma leave the ball, and when?"),
        ("Does Emma leave the ball? Why?", "Why does Emma leave the ball?"),
        ("爱玛为什么离开舞会\uff1f", "爱玛为什么离开舞会\uff1f"),
    ],
)
def test_the_question_again_is_no_answer(text: str, question: str) -> None:
    assert check(text, question=question) == "no_answer"
    assert check(text, "rejected", question=question) is None


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Emma", "Who is older, Emma or Harriet?"),
        ("Emma is older than Harriet.", "Is Emma older than Harriet?"),
        ("Why does Emma leave the ball? She is tired of it.", "Why does Emma leave the ball?"),
        ("What is a man profited, if he shall gain the whole world?", "What does he ask?"),
        ("Emma?", "Who is older, Emma or Harriet?"),
        ("Emma leaves.", ""),
    ],
)
def test_words_of_the_question_may_be_the_answer(text: str, question: str) -> None:
    assert not repeats_question(text, question)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("text", LOOPS)
def test_a_loop_falls_in_any_script(text: str, side: Side) -> None:
    share = repeated_share(text)
    assert share > SETTINGS.max_repetition_chosen
    expected = "repetition" if side == "chosen" or share > SETTINGS.max_repetition_rejected else None
    assert check(text, side) == expected


@pytest.mark.parametrize("text", NO_LOOPS)
def test_lists_poems_tables_and_code_are_no_loops(text: str) -> None:
    assert repeated_share(text) <= SETTINGS.max_repetition_chosen


@given(st.permutations("abcdefghijklmnopqrstuvwxyz0123456789"), st.integers(2, 40))
def test_the_share_of_a_loop_is_what_follows_its_first_round(period: list[str], rounds: int) -> None:
    length = (len(period) + 1) * rounds - 1
    assert repeated_share(f"{''.join(period)} " * rounds) == (length - len(period) - 1) / length


@pytest.mark.parametrize(
    ("letters", "run"),
    [("abcdefghijklmnopqrstuvwxyz0123456789", RUN), ("".join(map(chr, range(0x4E00, 0x4F00))), DENSE_RUN)],
)
def test_a_repeat_is_a_run_that_words_of_its_script_need_to_say_something(letters: str, run: int) -> None:
    rng = random.Random(0)

    def share(length: int) -> float:
        again = "".join(rng.choices(letters, k=length))
        text = " ".join(f"{''.join(rng.choices(letters, k=300))} {again}" for _ in range(10))
        return repeated_share(text) * len(text)

    # It may be longer by the spaces around it, and by letters behind them that agree by chance.
    assert 9 * run <= share(run) <= 9 * (run + 4)
    assert share(run - 5) == 0


def test_what_stands_beyond_the_limit_is_not_looked_at() -> None:
    head = " ".join(map(str, range(20000)))[:MAX_CHARACTERS]
    assert repeated_share(head + " the end" * 50000) == repeated_share(head) < 0.1


@given(ANY_TEXT)
def test_the_share_is_one_and_grows_when_a_text_is_said_again(text: str) -> None:
    once, twice = repeated_share(text), repeated_share(f"{text} {text} {text}")
    assert 0 <= once < 1
    assert 0 <= twice < 1
    assert twice >= 0.5 or not count_words(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("...", 0),
        ("A", 0),
        ("a b c", 0),
        ("Paris.", 1),
        ("In 1945", 3),
        ("42", 2),
        ("-3.5 %", 4),
        ("Emma Woodhouse", 2),
        ("巴黎", 2),
        ("是", 1),
        ("กรุงเทพ", 6),
        ("हिन्दी", 1),
        ("ﷺ", 4),
    ],
)
def test_words_are_counted_in_any_script(text: str, words: int) -> None:
    assert count_words(text) == words
    assert (check(text) == "too_short") == (words < 2)


@pytest.mark.parametrize("side", SIDES)
def test_an_answer_that_was_cut_off_or_is_beyond_the_limit_is_over_long(side: Side) -> None:
    text = "Emma stays at home with her father."
    assert check(text, side, finish_reason="length") == "over_long"
    limited = FilterSettings(max_answer_tokens=10)
    assert check(text, side, num_tokens=10, settings=limited) is None
    assert check(text, side, num_tokens=11, settings=limited) == "over_long"
    assert check(text, side, num_tokens=10**9) is None


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("Emma stays.", "Emma stays.", "identical"),
        ("Emma stays.", "  emma\n STAYS. ", "identical"),
        ("caf\u00e9", "cafe\u0301", "identical"),
        ("\u03b1\u0345\u0301", "\u03b1\u0301\u0345", "identical"),  # marks that folding case turns into a letter
        ("Emma stays.", "Emma stays", None),
        ("Emma stays.", "Emma leaves.", None),
    ],
)
def test_answers_that_differ_in_space_case_or_encoding_are_identical(chosen: str, rejected: str, reason: str | None) -> None:
    assert check_pair(chosen, rejected, SETTINGS) == reason
    assert check_pair(chosen, rejected, without("identical")) is None


@given(ANY_TEXT, st.sampled_from(["case", "space", "form"]))
def test_a_text_is_identical_with_itself_in_another_dress(text: str, dress: str) -> None:
    other = {"case": text.casefold(), "space": f"\t{text}\n", "form": unicodedata.normalize("NFD", text)}[dress]
    assert check_pair(text, other, SETTINGS) == "identical"


@given(
    text=ANY_TEXT | st.sampled_from(REFUSALS + LOOPS + UNTOLD),
    question=ANY_TEXT,
    side=st.sampled_from(SIDES),
    finish_reason=st.sampled_from(["stop", "length"]),
)
def test_any_text_gets_one_answer_and_a_filter_that_is_off_never_fires(
    text: str, question: str, side: Side, finish_reason: str
) -> None:
    reason = check(text, side, finish_reason, question=question)
    assert reason is None or reason in FILTERS
    assert reason == check(text, side, finish_reason, question=question)
    if reason is not None:
        other = check(text, side, finish_reason, question=question, settings=without(reason))
        assert other is None or FILTERS.index(other) > FILTERS.index(reason)
    off = FilterSettings(enabled=frozenset())
    assert check(text, side, finish_reason, question=question, settings=off) is None


PIECES = ["the ", "'a ", "“", "`", "I'm sorry ", "Sorry, but I cannot ", ", but as an ", "no ", "\u0e01", "? ", "a. "]


@pytest.mark.parametrize("piece", PIECES)
def test_an_enormous_answer_costs_a_bounded_time(piece: str) -> None:
    text = piece * (20 * MAX_CHARACTERS // len(piece))
    start = time.process_time()
    check(text, settings=FilterSettings(enabled=frozenset({"refusal", "repetition", "no_answer"})), question="Who is it?")
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "values",
    [
        {"enabled": frozenset({"refusals"})},
        {"min_words": 0},
        {"max_repetition_chosen": -0.1},
        {"max_repetition_rejected": 1.1},
        {"max_repetition_rejected": float("nan")},
        {"max_answer_tokens": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict) -> None:
    with pytest.raises(UserError, match=r"filter|-answer|--max-repetition"):
        FilterSettings(**values)


PATTERNS = [*((pattern, REFUSALS) for pattern in DECLINES + SPEAKS_AS_AI), *((pattern, UNTOLD) for pattern in NOT_TOLD)]


@pytest.mark.parametrize(("pattern", "examples"), PATTERNS)
def test_each_pattern_is_met_by_an_example(pattern: str, examples: list[str]) -> None:
    alone = compile_patterns((pattern,), before=BEFORE_NOT_TOLD if examples is UNTOLD else "")
    assert any(alone.match(sentence) for text in examples for sentence in sentences_of(text))


def test_the_bound_of_each_side_is_its_own() -> None:
    text = "The road leads over the hill to the old mill. " * 3
    assert SETTINGS.max_repetition_chosen < repeated_share(text) < SETTINGS.max_repetition_rejected
    assert (check(text, "chosen"), check(text, "rejected")) == ("repetition", None)
    swapped = FilterSettings(max_repetition_chosen=0.7, max_repetition_rejected=0.4)
    assert (check(text, "chosen", settings=swapped), check(text, "rejected", settings=swapped)) == (None, "repetition")
