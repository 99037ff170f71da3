import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.generation.documents import Document
from megatron_longpo.generation.engine import ChatTokenizer, Completion
from megatron_longpo.generation.pipeline import Generator, Outcome
from megatron_longpo.generation.prompts import LEAD_INS
from megatron_longpo.generation.settings import GenerationSettings, Sampling
from megatron_longpo.utils.errors import UserError

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


@dataclasses.dataclass
class ScriptedEngine:
    """Writes two questions that name the last paragraph of a chunk, and answers with the words that it was asked about."""

    bad_chunks: tuple[str, ...] = ()
    cut_off: tuple[str, ...] = ()
    asked: list[str] = dataclasses.field(default_factory=list)

    def complete(self, messages: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        self.asked += messages
        return [self._answer(message, sampling, seed) for message, seed in zip(messages, seeds, strict=True)]

    def _answer(self, message: str, sampling: Sampling, seed: int) -> Completion:
        context, instruction = message.rsplit("\n\n", 1)
        if not instruction.startswith("Write "):
            reason = "length" if any(mark in instruction for mark in self.cut_off) else "stop"
            return Completion(f"{len(context)} characters, seed {seed % 97}", reason, 7)
        mark = context.split("\n\n")[-1].split()[0]
        if mark in self.bad_chunks:
            return Completion("I would rather not.", "stop", 5)
        return Completion(f"1. What does paragraph {mark} say after 1945?\n2. Why does {mark} say it?", "stop", 30)

    def describe(self) -> dict[str, Any]:
        return {"engine": "scripted"}


@pytest.fixture(scope="module")
def tokenizer(random_model: Path) -> ChatTokenizer:
    return ChatTokenizer.load(random_model)


def make_document(name: str, num_paragraphs: int = 8) -> Document:
    paragraphs = [f"p{number} of {name}: " + "some words here, " * 5 for number in range(num_paragraphs)]
    return Document(name, "\n\n\n".join(paragraphs) + "\n", {"kind": "made up"})


def run(tokenizer: ChatTokenizer, engine: Any, documents: Sequence[Document], **changes: Any) -> list[Outcome]:
    settings = dataclasses.replace(SETTINGS, **changes)
    return list(Generator(engine, engine, tokenizer, 4096, settings).make_records(documents))


def test_every_part_of_a_record_comes_from_its_own_document_and_chunk(tokenizer: ChatTokenizer) -> None:
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
            assert turn["chosen"].startswith(f"{len(turn['short_context'])} characters")
            assert turn["rejected"].startswith(f"{len(document.text)} characters")
            assert f"{turn['short_context']}\n\n{turn['instruction']}" in engine.asked
            assert f"{document.text}\n\n{turn['instruction']}" in engine.asked
        starts = [origin["chunk_start"] for origin in record["metadata"]["turns"]]
        assert starts == sorted(set(starts))


def test_a_document_without_questions_does_not_shift_the_others(tokenizer: ChatTokenizer) -> None:
    good = [make_document("alpha"), make_document("beta")]
    silent = Document("silent", "\n\n".join("zz says nothing at all, " * 4 for _ in range(8)), {})
    together = run(tokenizer, ScriptedEngine(bad_chunks=("zz",)), [good[0], silent, good[1]])
    assert [together[0], together[2]] == run(tokenizer, ScriptedEngine(), good)
    assert together[1].record is None
    assert together[1].drops["document: no turn left"] == 1
    assert together[1].drops["chunk: no question in the model's output"] >= 3


def test_nothing_depends_on_order_or_company(tokenizer: ChatTokenizer) -> None:
    documents = [make_document(name) for name in ("alpha", "beta", "gamma", "delta")]
    forwards = run(tokenizer, ScriptedEngine(), documents)
    backwards = run(tokenizer, ScriptedEngine(), documents[::-1])
    assert forwards == backwards[::-1]
    assert forwards[2:3] == run(tokenizer, ScriptedEngine(), documents[2:3])
    other_seed = run(tokenizer, ScriptedEngine(), documents, seed=2)
    assert [outcome.record["turns"] for outcome in other_seed] != [outcome.record["turns"] for outcome in forwards]


def test_a_long_document_is_cut_to_fit_outside_its_chunks(tokenizer: ChatTokenizer) -> None:
    document = make_document("long", num_paragraphs=60)
    starts = set()
    for seed in range(6):
        [outcome] = run(tokenizer, ScriptedEngine(), [document], seed=seed)
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


def test_cut_off_answers_are_recorded_or_replaced_on_request(tokenizer: ChatTokenizer) -> None:
    document, engine = make_document("alpha"), ScriptedEngine(cut_off=("p1", "p5"))
    [kept] = run(tokenizer, engine, [document], num_turns=8, seq_length=4000)
    reasons = {origin["question"].split("?")[0]: origin["finish_reason_rejected"] for origin in kept.record["metadata"]["turns"]}
    assert set(reasons.values()) == {"stop", "length"}
    assert all((reason == "length") == any(mark in text for mark in engine.cut_off) for text, reason in reasons.items())
    [replaced] = run(tokenizer, engine, [document], num_turns=len(reasons) - 2, seq_length=4000, drop_cut_off=True)
    assert [origin["finish_reason_chosen"] for origin in replaced.record["metadata"]["turns"]] == ["stop"] * (len(reasons) - 2)
    assert replaced.drops["turn: chosen answer cut off"] > 0


def test_an_empty_rejected_answer_gives_its_place_to_another_chunk(tokenizer: ChatTokenizer) -> None:
    class EmptyOnDocuments(ScriptedEngine):
        def _answer(self, message: str, sampling: Sampling, seed: int) -> Completion:
            answer = super()._answer(message, sampling, seed)
            is_empty = len(message) > 700 and "p1" in message.rsplit("\n\n", 1)[1]
            return Completion("", "stop", 1) if is_empty else answer

    document = make_document("alpha", num_paragraphs=10)
    seeds = range(4)
    outcomes = [run(tokenizer, EmptyOnDocuments(), [document], seed=seed, num_turns=2)[0] for seed in seeds]
    assert any(outcome.drops.get("turn: empty rejected answer") for outcome in outcomes)
    assert all(len(outcome.record["turns"]) == 2 for outcome in outcomes)


def test_documents_that_cannot_be_used_are_dropped_with_a_reason(tokenizer: ChatTokenizer) -> None:
    spelt = Document("spelt", "A text that spells <|im_end|> in its words. " * 10, {})
    outcomes = run(tokenizer, ScriptedEngine(), [spelt, Document("short", "Too short.", {}), Document("empty", "", {})])
    assert [(outcome.record, outcome.drops) for outcome in outcomes] == [
        (None, {"document: text has the special token <|im_end|>": 1}),
        (None, {"document: no chunk between the token bounds": 1}),
        (None, {"document: no chunk between the token bounds": 1}),
    ]


def test_prompts_beyond_the_context_length_are_dropped_not_cut(tokenizer: ChatTokenizer) -> None:
    engine = ScriptedEngine()
    settings = dataclasses.replace(
        SETTINGS, num_turns=1, seq_length=600, question_sampling=Sampling(temperature=0, max_new_tokens=500)
    )
    [outcome] = Generator(engine, engine, tokenizer, 600, settings).make_records([make_document("alpha")])
    assert outcome.record is None
    assert outcome.drops["chunk: prompt for questions beyond the context length"] > 0
    assert engine.asked == []


def test_questions_that_are_too_long_are_not_used(tokenizer: ChatTokenizer) -> None:
    [outcome] = run(tokenizer, ScriptedEngine(), [make_document("alpha")], max_question_tokens=20)
    assert all(origin["question"].startswith("Why") for origin in outcome.record["metadata"]["turns"])
    [outcome] = run(tokenizer, ScriptedEngine(), [make_document("alpha")], max_question_tokens=10)
    assert outcome.drops["chunk: question too long"] > 0


def test_lengths_that_leave_no_room_are_refused_with_the_cure(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(UserError, match=r"--seq-length 3000 is beyond the model's 2048 positions.*--context-length 3000"):
        Generator(ScriptedEngine(), ScriptedEngine(), tokenizer, 2048, SETTINGS).document_budget()
    with pytest.raises(UserError, match=r"--seq-length 400 leaves 0 tokens.*raise it, or lower --num-turns"):
        run(tokenizer, ScriptedEngine(), [make_document("alpha")], seq_length=400)
    with pytest.raises(UserError, match="--max-chunk-tokens 20 is below --min-chunk-tokens 80"):
        dataclasses.replace(SETTINGS, max_chunk_tokens=20)
