"""Scores against those of lm-eval and of rouge_score, called by themselves."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.tasks.infinitebench import utils as harness_infinitebench
from lm_eval.tasks.ruler import common_utils as harness_ruler
from rouge_score.rouge_scorer import RougeScorer

from megatron_longpo.evaluation import ruler
from megatron_longpo.evaluation.scoring import holds_all, holds_any, picks_choice, rouge_lsum, word_f1

WORDS = ["Amber", "river", "1234567", "the", "a", "stone", "QWERT", "north", "an", "answer", "is", "B", "and", "\n", "\x07", "-"]
WORD_LISTS = st.lists(st.sampled_from(WORDS), max_size=12)
TEXTS = WORD_LISTS.map(" ".join)
PRINTABLE = TEXTS.map(lambda text: text.replace("\x07", ""))
RIGHT = st.lists(st.sampled_from(("amber", "River", "1234567", "stone", "qwert", "north")), min_size=1, max_size=4)


def harness_score(process, answer, expected):
    return process({"max_length": 4096, "outputs": expected}, [answer])["4096"]


@given(answer=TEXTS, expected=RIGHT)
def test_rulers_scores_are_lm_evals(answer, expected):
    assert holds_all(answer, expected) == harness_score(harness_ruler.process_results, answer, expected)
    one = expected[:1]
    assert holds_any(answer, one) == harness_score(harness_ruler.process_results_part, answer, one)


def test_one_of_several_right_answers_is_enough_in_reading():
    """RULER's own rule; lm-eval 0.4.13 divides by the number of right answers."""
    assert holds_any("In the old mill.", ["old mill", "a mill by the river"]) == 1.0
    assert harness_score(harness_ruler.process_results_part, "In the old mill.", ["old mill", "a mill by the river"]) == 0.5


def test_reading_alone_takes_any_answer():
    assert {name for name in ruler.NAMES if ruler.score_of(name) is holds_any} == set(ruler.QA_TASKS)


def test_a_line_break_does_not_hide_an_answer():
    assert holds_all("it is\x0012,\n 34", ["12", "34"]) == 1.0
    assert holds_all("12", ["12", "34"]) == 0.5
    assert holds_all("12\x0034", ["1234"]) == harness_score(harness_ruler.process_results, "12\x0034", ["1234"]) == 0.0


# --- InfiniteBench


@given(answer=PRINTABLE, expected=st.lists(PRINTABLE, min_size=1, max_size=3))
def test_word_f1_is_lm_evals(answer, expected):
    harness = harness_infinitebench.process_results_qa_en({"answer": expected}, [answer])["score"]
    assert word_f1(answer, expected) == pytest.approx(harness, abs=1e-12)


def test_case_punctuation_and_articles_do_not_count():
    assert word_f1("The Amber, a RIVER!", ["amber river"]) == 1.0
    assert word_f1("amber", ["amber river"]) == pytest.approx(2 / 3)


def test_punctuation_goes_before_articles():
    """InfiniteBench's order; lm-eval 0.4.13 has the other one, in which an article within a compound is dropped."""
    assert word_f1("theend", ["the-end"]) == 1.0
    assert harness_infinitebench.process_results_qa_en({"answer": ["the-end"]}, ["theend"])["score"] == 0.0


@settings(deadline=None)
@given(answer=TEXTS, expected=st.lists(TEXTS, min_size=1, max_size=2))
def test_rouge_is_the_best_over_right_summaries_of_what_hugging_faces_metric_computes(answer, expected):
    scorer = RougeScorer(rouge_types=["rouge1", "rougeLsum"], use_stemmer=False)
    best = max(scorer.score(target=one, prediction=answer)["rougeLsum"].fmeasure for one in expected)
    assert rouge_lsum(answer, expected) == best


def test_rouge_is_lm_evals_where_summaries_are_one_line_and_stems_are_equal():
    rng = random.Random(3)
    words = ["amber", "river", "stone", "north", "lamp", "mill", "ten", "old", "bridge", "harbour"]
    for _ in range(20):
        answer, right = (" ".join(rng.choices(words, k=rng.randrange(1, 30))) for _ in range(2))
        harness = harness_infinitebench.process_results_rouge({"answer": [right]}, [answer])["score"]
        assert rouge_lsum(answer, [right]) == pytest.approx(harness, abs=1e-12)


def test_lines_are_sentences_and_stems_are_no_words_to_rouge():
    assert rouge_lsum("river amber", ["amber\nriver"]) == pytest.approx(1.0)
    assert rouge_lsum("river amber", ["amber river"]) == pytest.approx(0.5)
    assert rouge_lsum("rivers", ["river"]) == 0.0


CHOICES = ("The old mill", "The pier", "A lamp", "Nobody")


@pytest.mark.parametrize(
    ("answer", "picked"),
    [
        ("B", "B"),
        (" b", None),
        ("B.", "B"),
        ("(B) The pier", "B"),
        ("The answer is B", "B"),
        ("The answer is: C.", "C"),
        ("I would say D, since nobody came", "D"),
        ("it is C\nor B", "C"),
        ("The pier", "B"),
        ("answer: The pier by the sea", "B"),
        ("", None),
        ("Nothing of that", None),
    ],
)
def test_a_choice_is_read_as_infinitebench_reads_it(answer, picked):
    scores = {letter: picks_choice(answer, (text, letter)) for letter, text in zip("ABCD", CHOICES, strict=True)}
    assert scores == {letter: float(letter == picked) for letter in "ABCD"}


def test_infinitebenchs_rules_give_credit_that_a_reader_would_not():
    """They are kept, so that scores are comparable with published ones."""
    assert picks_choice("Because it was late.", (CHOICES[1], "B")) == 1.0, "a first letter counts, whatever word it begins"
    assert picks_choice("it is not A but C", (CHOICES[0], "A")) == 1.0, "where the last letter is wrong, the first one counts"


LETTERS = st.lists(st.sampled_from(("A", "B", "C", "D", "the", "answer", "pier", ".", "or", "not")), min_size=1, max_size=8)


@given(answer=LETTERS.map(" ".join), right=st.sampled_from("ABCD"))
def test_a_choice_with_a_lone_letter_scores_as_in_lm_eval(answer, right):
    doc = {"options": list(CHOICES), "answer": [CHOICES["ABCD".index(right)]]}
    if not any(letter in answer.split() for letter in "ABCD") or answer[0] in "ABCD":
        return
    harness = harness_infinitebench.process_results_choice(doc, [answer])["score"]
    ours = picks_choice(answer, (doc["answer"][0], right))
    last = [word for word in answer.split() if word in "ABCD"][-1]
    assert harness == float(last == right)
    if harness:
        assert ours == 1.0
    elif ours:  # InfiniteBench goes on where the last letter is wrong; lm-eval 0.4.13 stops
        assert right in answer.split()
