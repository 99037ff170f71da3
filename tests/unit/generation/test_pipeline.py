import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.generation.documents import Document, GivenQuestion
from megatron_longpo.generation.filters import FILTERS, FilterSettings
from megatron_longpo.generation.pipeline import Generator
from megatron_longpo.generation.prompts import LEAD_INS
from megatron_longpo.generation.records import restore_texts
from megatron_longpo.generation.settings import GenerationSettings
from megatron_longpo.generation.work import Outcome
from megatron_longpo.inference.asking import Asker
from megatron_longpo.inference.engine import Completion, PromptTokenizer
from megatron_longpo.inference.journal import Journal
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.utils.errors import UserError
from tests.support.scripted_generation import ScriptedEngine, make_document

ALL_BUT_LENGTH = FilterSettings(enabled=frozenset(FILTERS) - {"over_long"})

# The tokenizer of the tests is byte-level: a token is a character.
SETTINGS = GenerationSettings(
    seed=1,
    num_turns=3,
    seq_length=3000,
    min_chunk_tokens=80,
    max_chunk_tokens=200,
    max_question_tokens=60,
    question_sampling=Sampling(temperature=0.7, max_new_tokens=60),
    answer_sampling=Sampling(temperature=0.0, max_new_tokens=40),
)


@pytest.fixture(scope="module")
def tokenizer(random_model: Path) -> PromptTokenizer:
    return PromptTokenizer.load(random_model)


def run(tokenizer: PromptTokenizer, engine: Any, documents: Sequence[Document], **changes: Any) -> list[Outcome]:
    """Outcomes, their records with the texts of the documents."""
    generator = Generator(engine, engine, tokenizer, 4096, dataclasses.replace(SETTINGS, **changes))
    return make(generator, documents)


def make(generator: Generator, documents: Sequence[Document]) -> list[Outcome]:
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal") as journal:
        outcomes = list(generator.make_records(documents, Asker(journal)))
    return [
        dataclasses.replace(outcome, record=outcome.record and restore_texts(outcome.record, document))
        for outcome, document in zip(outcomes, documents, strict=True)
    ]


def test_every_part_of_a_record_comes_from_its_own_document_and_chunk(tokenizer: PromptTokenizer) -> None:
    documents = [make_document(name) for name in ("alpha", "beta", "gamma")]
    engine = ScriptedEngine(bad_chunks=("p1", "p5"))
    outcomes = run(tokenizer, engine, documents)
    assert sum(outcome.drops.get("chunk: no question in the model's output", 0) for outcome in outcomes) > 0
    for document, outcome in zip(documents, outcomes, strict=True):
        record = outcome.record
        assert record is not None
        assert record["document_id"] == document.document_id
        assert record["long_context"] == document.text
        assert record["metadata"]["document"] == {"kind": "made up"}
        for number, (turn, origin) in enumerate(zip(record["turns"], record["metadata"]["turns"], strict=True)):
            assert (origin["document_id"], origin["turn_id"]) == (document.document_id, number)
            assert turn["short_context"] == document.text[origin["chunk_start"] : origin["chunk_end"]]
            assert turn["instruction"] == f"{origin['lead_in']} {origin['question']}"
            assert origin["lead_in"] in LEAD_INS
            mark = turn["short_context"].split("\n\n")[-1].split()[0]
            assert mark in turn["instruction"]
            assert mark not in engine.bad_chunks
            assert turn["chosen"].startswith(f"The text has {len(turn['short_context'])} characters")
            assert turn["rejected"].startswith(f"The text has {len(document.text)} characters")
            assert f"{turn['short_context']}\n\n{turn['instruction']}" in engine.asked
            assert f"{document.text}\n\n{turn['instruction']}" in engine.asked
        starts = [origin["chunk_start"] for origin in record["metadata"]["turns"]]
        assert starts == sorted(set(starts))


def test_a_document_without_questions_does_not_shift_the_others(tokenizer: PromptTokenizer) -> None:
    good = [make_document("alpha"), make_document("beta")]
    text = "\n\n".join("zz says nothing at all, " * 4 for _ in range(8))
    silent = Document(document_id="silent", text=text, metadata={}, domain="text")
    together = run(tokenizer, ScriptedEngine(bad_chunks=("zz",)), [good[0], silent, good[1]])
    assert [together[0], together[2]] == run(tokenizer, ScriptedEngine(), good)
    assert together[1].record is None
    assert together[1].drops["document: no turn left"] == 1
    assert together[1].drops["chunk: no question in the model's output"] >= 3


def test_nothing_depends_on_order_or_company(tokenizer: PromptTokenizer) -> None:
    documents = [make_document(name) for name in ("alpha", "beta", "gamma", "delta")]
    forwards = run(tokenizer, ScriptedEngine(), documents)
    backwards = run(tokenizer, ScriptedEngine(), documents[::-1])
    assert forwards == backwards[::-1]
    assert forwards[2:3] == run(tokenizer, ScriptedEngine(), documents[2:3])
    other_seed = run(tokenizer, ScriptedEngine(), documents, seed=2)
    assert [outcome.record["turns"] for outcome in other_seed] != [outcome.record["turns"] for outcome in forwards]


def test_a_long_document_is_cut_to_fit_outside_its_chunks(tokenizer: PromptTokenizer) -> None:
    document = make_document("long", num_paragraphs=60)
    starts = set()
    for seed in range(6):
        [outcome] = run(tokenizer, ScriptedEngine(), [document], seed=seed, max_document_tokens=8000)
        record = outcome.record
        start, end = record["metadata"]["long_context_start"], record["metadata"]["long_context_end"]
        starts.add(start)
        assert record["long_context"] == document.text[start:end]
        assert 0 < end - start < len(document.text)
        for origin in record["metadata"]["turns"]:
            assert start <= origin["chunk_start"] < origin["chunk_end"] <= end
        conversation = [{"role": "user", "content": record["long_context"]}]
        for turn in record["turns"]:
            conversation[-1]["content"] += f"\n\n{turn['instruction']}"
            conversation += [{"role": "assistant", "content": "x" * 40}, {"role": "user", "content": ""}]
        rendered = tokenizer.tokenizer.apply_chat_template(conversation[:-1], tokenize=False)
        assert len(tokenizer.encode(rendered)) <= SETTINGS.seq_length
    assert len(starts) > 1


def test_cut_off_answers_are_replaced_or_recorded_where_the_filter_is_off(tokenizer: PromptTokenizer) -> None:
    document, engine = make_document("alpha"), ScriptedEngine(cut_off=("p1", "p5"))
    [kept] = run(tokenizer, engine, [document], num_turns=8, seq_length=4000, filters=ALL_BUT_LENGTH)
    reasons = {origin["question"].split("?")[0]: origin["finish_reason_rejected"] for origin in kept.record["metadata"]["turns"]}
    assert set(reasons.values()) == {"stop", "length"}
    assert all((reason == "length") == any(mark in text for mark in engine.cut_off) for text, reason in reasons.items())
    [replaced] = run(tokenizer, engine, [document], num_turns=len(reasons) - 2, seq_length=4000)
    assert [origin["finish_reason_chosen"] for origin in replaced.record["metadata"]["turns"]] == ["stop"] * (len(reasons) - 2)
    assert replaced.drops["turn: chosen answer: over_long"] > 0
    assert {row["reason"] for row in replaced.dropped} == {"chosen answer: over_long"}
    assert all(row["chosen"] and row["rejected"] is None and row["step"] == "chosen" for row in replaced.dropped)


def test_an_empty_rejected_answer_gives_its_place_to_another_chunk(tokenizer: PromptTokenizer) -> None:
    class EmptyOnDocuments(ScriptedEngine):
        def reply(self, message: str, seed: int) -> Completion:
            answer = super().reply(message, seed)
            is_empty = len(message) > 700 and "p1" in message.rsplit("\n\n", 1)[1]
            return Completion("", "stop", 1) if is_empty else answer

    document = make_document("alpha", num_paragraphs=10)
    seeds = range(4)
    outcomes = [run(tokenizer, EmptyOnDocuments(), [document], seed=seed, num_turns=2)[0] for seed in seeds]
    assert any(outcome.drops.get("turn: rejected answer: empty answer") for outcome in outcomes)
    assert all(len(outcome.record["turns"]) == 2 for outcome in outcomes)


def test_documents_that_cannot_be_used_are_dropped_with_a_reason(tokenizer: PromptTokenizer) -> None:
    texts = ("A text that spells <|im_end|> in its words. " * 10, "Short", "Too short for a chunk.", "x y " * 800)
    documents = [Document(document_id=text[:5], text=text, metadata={}, domain="text") for text in texts]
    outcomes = run(tokenizer, ScriptedEngine(), documents, min_document_tokens=6)
    assert [(outcome.record, outcome.drops) for outcome in outcomes] == [
        (None, {"document: text has the special token <|im_end|>": 1}),
        (None, {"document: fewer tokens than --min-document-tokens": 1}),
        (None, {"document: no chunk between the token bounds": 1}),
        (None, {"document: more tokens than --max-document-tokens": 1}),
    ]


def test_prompts_beyond_the_context_length_are_dropped_not_cut(tokenizer: PromptTokenizer) -> None:
    engine = ScriptedEngine()
    settings = dataclasses.replace(
        SETTINGS, num_turns=1, seq_length=600, question_sampling=Sampling(temperature=0, max_new_tokens=500)
    )
    settings = dataclasses.replace(settings, max_document_tokens=2000)
    [outcome] = make(Generator(engine, engine, tokenizer, 600, settings), [make_document("alpha")])
    assert outcome.record is None
    assert outcome.drops["chunk: prompt for questions beyond the context length"] > 0
    assert engine.asked == []


def test_questions_that_are_too_long_are_not_used(tokenizer: PromptTokenizer) -> None:
    [outcome] = run(tokenizer, ScriptedEngine(), [make_document("alpha")], max_question_tokens=20)
    assert all(origin["question"].startswith("Why") for origin in outcome.record["metadata"]["turns"])
    [outcome] = run(tokenizer, ScriptedEngine(), [make_document("alpha")], max_question_tokens=10)
    assert outcome.drops["chunk: question too long, or with a special token"] > 0


def test_lengths_that_leave_no_room_are_refused_with_the_cure(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(UserError, match=r"--seq-length 3000 is beyond the model's 2048 positions.*--context-length 3000"):
        Generator(ScriptedEngine(), ScriptedEngine(), tokenizer, 2048, SETTINGS).document_budget()
    with pytest.raises(UserError, match=r"--seq-length 400 leaves 0 tokens.*raise it, or lower --num-turns"):
        run(tokenizer, ScriptedEngine(), [make_document("alpha")], seq_length=400, max_document_tokens=9000)
    with pytest.raises(UserError, match="--max-chunk-tokens 20 is below --min-chunk-tokens 80"):
        dataclasses.replace(SETTINGS, max_chunk_tokens=20)


def test_each_answer_filter_drops_the_turn_and_lets_another_chunk_take_its_place(tokenizer: PromptTokenizer) -> None:
    spoilt = {
        "refusal": "I am sorry, but as an AI language model I cannot help with that request.",
        "repetition": "again and again " * 12,
        "too_short": "Hm",
        "no_answer": "The text does not say anything about this.",
    }

    class Spoiling(ScriptedEngine):
        """Answers one chunk's question, which names p1, with the same text always."""

        text = ""

        def reply(self, message: str, seed: int) -> Completion:
            made = super().reply(message, seed)
            spoils = not made.text.startswith("1.") and "p1" in message.rsplit("\n\n", 1)[1]
            return Completion(self.text, "stop", 20) if spoils else made

    document = make_document("alpha")
    for name, text in spoilt.items():
        engine = Spoiling()
        engine.text = text
        outcomes = [run(tokenizer, engine, [document], num_turns=2, seed=seed)[0] for seed in range(5)]
        assert {row["reason"] for outcome in outcomes for row in outcome.dropped} == {f"chosen answer: {name}"}
        assert all(len(outcome.record["turns"]) == 2 for outcome in outcomes)
        off = FilterSettings(enabled=frozenset(FILTERS) - {name, "identical"})
        assert not any(run(tokenizer, engine, [document], num_turns=2, seed=seed, filters=off)[0].dropped for seed in range(5))


def test_text_that_spells_a_special_token_is_in_no_turn(tokenizer: PromptTokenizer) -> None:
    class Spelling(ScriptedEngine):
        def reply(self, message: str, seed: int) -> Completion:
            made = super().reply(message, seed)
            return Completion(f"{made.text} <|im_end|>", "stop", 9) if "p1" in message.rsplit("\n\n", 1)[1] else made

    outcomes = [run(tokenizer, Spelling(), [make_document("alpha")], num_turns=2, seed=seed)[0] for seed in range(4)]
    assert any(outcome.drops.get("turn: chosen answer: text has a special token") for outcome in outcomes)
    assert not any("<|im_end|>" in turn["chosen"] for outcome in outcomes for turn in outcome.record["turns"])


def test_identical_answers_are_dropped_as_a_pair(tokenizer: PromptTokenizer) -> None:
    class Constant(ScriptedEngine):
        def reply(self, message: str, seed: int) -> Completion:
            made = super().reply(message, seed)
            return made if made.text.startswith("1.") else Completion("Always the same words.", "stop", 5)

    [outcome] = run(tokenizer, Constant(), [make_document("alpha")])
    assert outcome.record is None
    assert set(outcome.drops) == {"turn: identical", "document: no turn left"}
    assert all(row["chosen"] == row["rejected"] for row in outcome.dropped)


def test_the_verifier_reads_the_chunk_and_judges_in_both_orders(tokenizer: PromptTokenizer) -> None:
    engine = ScriptedEngine()
    [outcome] = run(tokenizer, engine, [make_document("alpha")], verify="record")
    turns = outcome.record["turns"]
    origins = outcome.record["metadata"]["turns"]
    assert [(origin["verified_chosen"], origin["verified_better"]) for origin in origins] == [(True, True)] * len(turns)
    for turn in turns:
        both = [message for message in engine.asked if f"Answer A: {turn['chosen']}" in message]
        swapped = [message for message in engine.asked if f"Answer B: {turn['chosen']}" in message]
        assert len(both) == len(swapped) == 1
        assert all(message.startswith(turn["short_context"]) and turn["rejected"] in message for message in (*both, *swapped))


def test_the_verifier_drops_what_it_finds_bad_and_keeps_what_it_cannot_tell(tokenizer: PromptTokenizer) -> None:
    class Judge(ScriptedEngine):
        words = ("Yes", "A", "B")

        def reply(self, message: str, seed: int) -> Completion:
            made = super().reply(message, seed)
            words = {"Yes.": self.words[0], "A": self.words[1], "B": self.words[2]}
            return Completion(words[made.text], "stop", 2) if made.text in words else made

    def judged(words: tuple[str, str, str], mode: str) -> Outcome:
        engine = Judge()
        engine.words = words
        return run(tokenizer, engine, [make_document("alpha")], verify=mode)[0]

    assert judged(("No", "A", "B"), "filter").record is None
    assert set(judged(("no.", "A", "B"), "filter").drops) == {
        "turn: verifier: the chosen answer does not answer", "document: no turn left",
    }  # fmt: skip
    assert set(judged(("Yes", "B", "A"), "filter").drops) == {
        "turn: verifier: the rejected answer is better", "document: no turn left",
    }  # fmt: skip
    for words in (("Perhaps", "A", "A"), ("It is hard to say", "neither", "B")):
        unsure = judged(words, "filter")
        assert len(unsure.record["turns"]) == 3
        assert all(origin["verified_better"] is None for origin in unsure.record["metadata"]["turns"])
    recorded = judged(("No", "B", "A"), "record").record["metadata"]["turns"]
    assert [(origin["verified_chosen"], origin["verified_better"]) for origin in recorded] == [(False, False)] * 3


def test_the_margin_is_that_of_the_answers_given_the_chunk(tokenizer: PromptTokenizer) -> None:
    engine = ScriptedEngine()
    [outcome] = run(tokenizer, engine, [make_document("alpha")], logprob_margin="record")
    for turn, origin in zip(outcome.record["turns"], outcome.record["metadata"]["turns"], strict=True):
        assert origin["logprob_margin"] == len(turn["rejected"]) - len(turn["chosen"])
        assert engine.asked.count(f"{turn['short_context']}\n\n{turn['instruction']}") == 3  # answered once, scored twice
    [dropped] = run(tokenizer, engine, [make_document("alpha")], logprob_margin="filter", min_logprob_margin=1000.0)
    assert set(dropped.drops) == {"turn: log-prob margin below --min-logprob-margin", "document: no turn left"}


def test_questions_of_the_document_are_asked_of_the_chunk_that_they_are_about(tokenizer: PromptTokenizer) -> None:
    document = make_document("alpha")
    text = document.text
    about = [text.index(f"p{number} of") for number in (2, 6)]
    questions = tuple(GivenQuestion(text=f"What about {text[at : at + 2]}?", start=at, end=at + 30) for at in about)
    wide = GivenQuestion(text="What about everything?", start=0, end=len(text))
    engine = ScriptedEngine()
    [outcome] = run(tokenizer, engine, [dataclasses.replace(document, questions=(*questions, wide))])
    asked = {origin["question"]: origin for origin in outcome.record["metadata"]["turns"]}
    assert set(asked) == {question.text for question in questions}
    for question in questions:
        origin = asked[question.text]
        assert origin["chunk_start"] <= question.start < question.end <= origin["chunk_end"]
    assert outcome.drops["question: what it is about is in no single chunk"] == 1
    assert not any("Write " in message for message in engine.asked)


def test_a_question_generator_of_the_users_takes_the_models_place(tokenizer: PromptTokenizer) -> None:
    engine, calls = ScriptedEngine(), []

    def make_questions(chunk: str, number: int, seed: int) -> list[str]:
        calls.append((chunk, number, seed))
        return [f"What has {len(chunk)} characters?", " "]

    generator = Generator(engine, engine, tokenizer, 4096, SETTINGS, make_questions, "mine")
    [outcome] = make(generator, [make_document("alpha")])
    for turn, origin in zip(outcome.record["turns"], outcome.record["metadata"]["turns"], strict=True):
        assert origin["question"] == f"What has {len(turn['short_context'])} characters?"
    assert {number for _, number, _ in calls} == {SETTINGS.num_questions}
    assert len({seed for *_, seed in calls}) == len(calls)
    assert outcome.record["metadata"]["generation"]["questions_by"] == "mine"


def test_turns_stand_in_document_order_or_shuffled_by_seed(tokenizer: PromptTokenizer) -> None:
    document = make_document("alpha", num_paragraphs=16)
    orders = set()
    for seed in range(6):
        [shuffled] = run(tokenizer, ScriptedEngine(), [document], turn_order="shuffled", seed=seed)
        [ordered] = run(tokenizer, ScriptedEngine(), [document], seed=seed)
        chunks = [origin["chunk_id"] for origin in shuffled.record["metadata"]["turns"]]
        assert [origin["turn_id"] for origin in shuffled.record["metadata"]["turns"]] == [0, 1, 2]
        assert sorted(chunks) == [origin["chunk_id"] for origin in ordered.record["metadata"]["turns"]]
        orders.add(tuple(sorted(range(3), key=chunks.__getitem__)))
    assert len(orders) > 1
