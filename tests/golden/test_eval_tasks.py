"""Scores during training are what greedy decoding with Hugging Face's model gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.evaluation.models import Place, open_folder
from megatron_longpo.evaluation.plan import Plan
from megatron_longpo.evaluation.questions import QuestionTask, load_questions
from megatron_longpo.evaluation.run import evaluate
from megatron_longpo.evaluation.text import load_haystack
from tests.support.taught_model import LENGTH, TaughtModel, items_of, make_taught_model, measure
from tests.support.workers import Workers


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> TaughtModel:
    return make_taught_model(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def measured(taught: TaughtModel, workers: Workers) -> tuple[dict[str, float], dict[int, tuple[bool, float]]]:
    return workers.run(1, measure, taught.config())[0]


def greedy(model: Any, prompt: Sequence[int], num_tokens: int) -> list[int]:
    ids = torch.tensor([list(prompt)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens)
    return out[0, ids.shape[1] :].tolist()


def nll(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    ids = torch.tensor([[*prompt, *answer]])
    log_probs = torch.log_softmax(model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double(), dim=-1)
    return -float(log_probs.gather(1, torch.tensor(answer)[:, None]).mean())


def test_a_sample_is_solved_where_hugging_face_writes_one_of_its_answers(
    taught: TaughtModel, measured: tuple[dict[str, float], dict[int, tuple[bool, float]]]
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(taught.hf, dtype=torch.float32).eval()
    metrics, scores = measured
    labels, items = items_of(taught.config())
    expected: dict[str, dict[int, tuple[bool, float]]] = {}
    assert scores.keys() == set(range(len(items)))
    for number, (names, item) in enumerate(zip(labels, items, strict=True)):
        prompt, answers = item.prompt.tolist(), [answer.tolist() for answer in item.answers]
        with torch.no_grad():
            written = any(greedy(model, prompt, len(answer)) == answer for answer in answers)
            lowest = min(nll(model, prompt, answer) for answer in answers)
        assert scores[number] == (written, pytest.approx(lowest, rel=1e-4))
        for name in names:
            expected.setdefault(name, []).append((written, lowest))
    assert len(metrics) == 2 * len(expected)
    for name, parts in expected.items():
        assert metrics[f"eval/{name}"] == pytest.approx(sum(written for written, _ in parts) / len(parts))
        assert metrics[f"eval/{name}/nll"] == pytest.approx(sum(lowest for _, lowest in parts) / len(parts), rel=1e-4)
    assert 0 < metrics[f"eval/niah_single_1/{LENGTH}"] < 1, "else the comparison would say little"
    assert 0 < metrics["eval/own"] < 1


def test_groups_have_the_scores_that_the_evaluation_gives_whole_answers(
    taught: TaughtModel, measured: tuple[dict[str, float], dict[int, tuple[bool, float]]], tmp_path: Path
) -> None:
    task = QuestionTask(file=load_questions("own", taught.questions), metric="exact", answer_tokens=24)
    plan = Plan(
        seed=1, lengths=[LENGTH], samples=1, temperature=0.0, haystack=load_haystack(None), generated=[], books=[],
        book_length=1, short=[], short_data=None, limit=None, save_prompts=False, questions=[task],
    )  # fmt: skip
    place = Place(name="m", folder=taught.hf)
    model = open_folder(place, dtype="float32", rotary_base=None, batch_tokens=4096, group_size=8)
    found = evaluate(plan, model, tmp_path)["questions"]["own"]
    metrics = measured[0]
    assert found["score"] == pytest.approx(100 * metrics["eval/own"])
    for group, summary in found["groups"].items():
        assert summary["score"] == pytest.approx(100 * metrics[f"eval/own/{group}"])
    assert {metrics[f"eval/own/{group}"] for group in ("taught", "strange", "begun")} == {0.0, 1.0}


def test_a_text_that_several_questions_share_is_read_once_and_changes_no_score(
    taught: TaughtModel, measured: tuple[dict[str, float], dict[int, tuple[bool, float]]], workers: Workers
) -> None:
    from megatron_longpo.data.answer_packing import pack_answers

    _, items = items_of(taught.config())
    (packed,) = pack_answers(items[4:], 10**6, 1)
    assert len(packed.tokens) < sum(item.length for item in items[4:]) - 500
    short = dataclasses.replace(taught.config(), data=dataclasses.replace(taught.config().data, seq_length=700))
    for number, (solved, lowest) in workers.run(1, measure, short)[0][1].items():
        assert measured[1][number] == (solved, pytest.approx(lowest, rel=1e-4))
