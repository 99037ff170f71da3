"""Pairs whose answers start alike, and hold the first word of each vocabulary shard: what random answers seldom do.

The shared prefix then reaches into the first answer, whose targets count in the log-probs of both sides.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from megatron_longpo.conversion.import_hf import hf_to_mcore
from megatron_longpo.conversion.workers import Workers as ConversionWorkers
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.layout import shared_prefix_length
from megatron_longpo.data.preprocess import PreprocessOptions, preprocess
from megatron_longpo.data.record import PreferenceRecord, Turn
from megatron_longpo.data.tokenizer import TokenizerSpec
from tests.golden.test_objective_oracle import assert_gradients
from tests.support.hf_models import VOCAB_SIZE, make_hf_model
from tests.support.layouts import Layout, read_dump, train_and_dump
from tests.support.oracle import batch_metrics, load_hf, pair_terms
from tests.support.scenario import BETA, ROTARY_BASE, Scenario, fill_reference
from tests.support.workers import Workers

# "!" is word 0 of the byte vocabulary; the first byte of the Chinese numerals below U+5000 is word 160, the first of shard 1 of 2
RECORDS = (
    PreferenceRecord(
        "long-common-start", "The harbour opened in spring! 一 ship came.",
        (Turn("opened in spring!", "When?", "In spring, said the captain! 一 day.", "In spring, said the captain! 丁 days?"),
         Turn("一 ship came.", "How many?", "One ship! 一", "Two ships!")), {},
    ),
    PreferenceRecord(
        "one-answer-starts-the-other", "A river turned to stone in one night!",
        (Turn("turned to stone", "What happened?", "It turned to stone", "It turned to stone! 一 night."),
         Turn("in one night!", "How long?", "A night!", "A year, perhaps!")), {},
    ),
    PreferenceRecord(
        "nothing-in-common", "Water is green, light is old. 一!",
        (Turn("Water is green", "Which colour?", "Green!", "一 colour"), Turn("light is old", "How old?", "Old!", "New! 一")), {},
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory, workers: Workers) -> Scenario:
    folder = tmp_path_factory.mktemp("alike")
    made = Scenario(folder / "hf", folder / "native", folder / "pairs")
    make_hf_model(made.hf, "llama", num_hidden_layers=2)
    hf_to_mcore(made.hf, made.native, ConversionWorkers())
    records = folder / "records.jsonl"
    records.write_text("".join(record.to_json() + "\n" for record in RECORDS), encoding="utf-8")
    preprocess(
        PreprocessOptions(
            inputs=(str(records),), output_prefix=str(made.prefix), tokenizer=TokenizerSpec(str(made.hf)), seq_length=512
        )
    )
    workers.run(1, fill_reference, made)
    return made


def test_the_pairs_are_what_they_are_meant_to_be(scenario: Scenario) -> None:
    dataset = PreferenceDataset(str(scenario.prefix))
    shared = []
    for index in range(len(dataset)):
        pair = dataset[index]
        shared.append(shared_prefix_length(pair.chosen.input_ids, pair.rejected.input_ids) - pair.chosen.answer_spans[0][0])
        answers = [side.input_ids[start:end] for side in (pair.chosen, pair.rejected) for start, end in side.answer_spans]
        assert {0, VOCAB_SIZE // 2} <= set(np.concatenate(answers).tolist())
    assert max(shared) > 20
    assert min(shared) == 0
    assert shared.count(len("It turned to stone")) == 1


@pytest.mark.parametrize("sharing", [True, False], ids=["shared", "two-sequences"])
@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2), Layout(cp=2), Layout(tp=2, sp=True, cp=2)], ids=str)
def test_answers_that_start_alike_count_on_both_sides(
    layout: Layout, sharing: bool, scenario: Scenario, workers: Workers, tmp_path: Path
) -> None:
    policy, reference = load_hf(scenario.hf, ROTARY_BASE), load_hf(scenario.hf)
    dataset = PreferenceDataset(str(scenario.prefix))
    expected = batch_metrics([pair_terms(policy, reference, dataset[index], BETA) for index in range(len(dataset))], 1.0, 0.5)
    expected["loss"].backward()
    changes = {"global_batch_size": len(dataset), "prefix_sharing": sharing}
    config = dataclasses.replace(scenario.config(**changes), parallel=layout.parallel())
    (found,) = workers.run(layout.world_size, train_and_dump, config, str(tmp_path), 1)[0]["metrics"]
    for name, value in expected.items():
        assert found[name] == pytest.approx(
            value.item(), abs=1e-5 * max(1.0, abs(value.item()), 100 * name.startswith("rewards/"))
        ), name
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters()}
    assert_gradients(read_dump(tmp_path / "gradients"), gradients)
