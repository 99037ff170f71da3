"""Short tasks on made-up data, against lm-eval run by itself."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from megatron_longpo.evaluation import harness
from megatron_longpo.evaluation.models import Place, open_folder
from megatron_longpo.evaluation.plan import SHORT_NAMES, Plan
from megatron_longpo.evaluation.report import write_reports
from megatron_longpo.evaluation.run import evaluate
from megatron_longpo.evaluation.short import TASKS, find_data, find_subjects
from megatron_longpo.utils.errors import UserError
from tests.support.evaluation import write_short_data
from tests.support.hf_models import make_hf_model


@pytest.fixture(scope="module", autouse=True)
def offline():
    """No hub: neither huggingface_hub nor datasets may ask for anything."""
    import datasets.config
    import huggingface_hub.constants

    patch = pytest.MonkeyPatch()
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_short_data(tmp_path_factory.mktemp("short"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_hf_model(tmp_path_factory.mktemp("tiny"), "llama", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def model(tiny):
    return open_folder(Place(name="tiny", folder=tiny), dtype="auto", rotary_base=None, batch_tokens=16384, group_size=8)


@pytest.fixture(scope="module")
def plan(data, haystack):
    return Plan(
        seed=1, lengths=[1024], samples=1, temperature=0.0, haystack=haystack, generated=[], books=[], book_length=1,
        short=SHORT_NAMES, short_data=data, limit=None, save_prompts=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(plan, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "tiny"
    evaluate(plan, model, folder)
    return folder


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_are_lm_evals_own(plan, model, folder, data):
    """The same tasks, by their registered names and few-shot counts written out here, on a plain model of lm-eval's."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    def local(place, *splits):
        files = {split: str(data / place / f"{split}.jsonl") for split in splits}
        return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}

    tasks = [
        {"task": "mmlu_anatomy", "num_fewshot": 5, **local("mmlu/anatomy", "test", "dev")},
        {"task": "mmlu_virology", "num_fewshot": 5, **local("mmlu/virology", "test", "dev")},
        {"task": "arc_challenge", "num_fewshot": 25, **local("arc_challenge", "test", "train")},
        {"task": "hellaswag", "num_fewshot": 10, **local("hellaswag", "validation", "train")},
        {"task": "winogrande", "num_fewshot": 5, **local("winogrande", "validation", "train")},
    ]
    folders = [Path(lm_eval.__file__).parent / "tasks" / name for name in ("mmlu/default", "arc", "hellaswag", "winogrande")]
    plain = HFLM(pretrained=model.engine.model, tokenizer=model.tokenizer.tokenizer, batch_size=1)
    group = {"group": "here", "task": tasks}
    found = lm_eval.simple_evaluate(
        plain, tasks=[group], bootstrap_iters=0, task_manager=TaskManager(include_defaults=False, include_path=folders)
    )["results"]
    ours = json.loads((folder / "results.json").read_text())["short"]
    for name, metric in (("arc_challenge", "acc_norm"), ("hellaswag", "acc_norm"), ("winogrande", "acc")):
        assert ours[name]["score"] == pytest.approx(100 * found[name][f"{metric},none"]), name
        assert ours[name]["acc"] == pytest.approx(100 * found[name]["acc,none"]), name
    assert any(ours[name]["acc"] != ours[name]["acc_norm"] for name in ("arc_challenge", "hellaswag"))
    anatomy, virology = (found[f"mmlu_{name}"]["acc,none"] for name in ("anatomy", "virology"))
    assert ours["mmlu"]["score"] == pytest.approx(100 * (4 * anatomy + 2 * virology) / 6)
    assert (ours["mmlu"]["samples"], ours["mmlu"]["subjects"]) == (6, 2)


def test_each_prompt_has_the_papers_number_of_examples(folder):
    prompts = {}
    for row in read_lines(folder / "prompts.jsonl"):
        prompts.setdefault(row["task"], row["message"])
    assert prompts["mmlu_anatomy"].count("Answer:") == 5 + 1
    assert prompts["arc_challenge"].count("Question:") == 25 + 1
    assert prompts["hellaswag"].count("Sailing:") == 10 + 1
    assert prompts["winogrande"].count(" is by the ") == 5 + 1
    assert {name: task.few_shot for name, task in TASKS.items()} == {
        "mmlu": 5,
        "arc_challenge": 25,
        "hellaswag": 10,
        "winogrande": 5,
    }


def test_each_sample_is_kept_with_its_choices_and_log_probs(folder):
    rows = read_lines(folder / "samples.jsonl")
    results = json.loads((folder / "results.json").read_text())["short"]
    for name in SHORT_NAMES:
        own = [row for row in rows if row["task"] == name]
        assert len(own) == results[name]["samples"]
        assert 100 * sum(row["score"] for row in own) / len(own) == pytest.approx(results[name]["score"])
        assert all(len(row["choices"]) == len(row["logps"]) == len(set(row["choices"])) for row in own)
    for row in rows:
        sizes = [len(choice.strip()) if TASKS[row["task"]].metric == "acc_norm" else 1 for choice in row["choices"]]
        weighed = [logp / size for logp, size in zip(row["logps"], sizes, strict=True)]
        assert row["score"] == float(weighed.index(max(weighed)) == row["expected"]), row["task"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_without_computing_a_log_prob_twice(plan, model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "REQUESTS_AT_ONCE", 7)
    asked = []
    whole = HFLM.loglikelihood

    def counted(self, requests, disable_tqdm=False):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(len(requests))
        return whole(self, requests, disable_tqdm=disable_tqdm)

    monkeypatch.setattr(HFLM, "loglikelihood", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(plan, model, tmp_path)
    assert not (tmp_path / "results.json").exists()
    asked.append(0)  # past the interruption
    evaluate(plan, model, tmp_path)
    lines = read_lines(folder / "journal.jsonl")
    assert sum(asked) == len({key for line in lines for key, _ in line["entries"]})
    ours, theirs = (json.loads((path / "results.json").read_text())["short"] for path in (tmp_path, folder))
    assert ours == theirs


def test_the_report_shows_short_tasks_beside_the_papers(folder):
    lines = "\n".join(write_reports(folder.parent))
    results = json.loads((folder / "results.json").read_text())["short"]
    for name in SHORT_NAMES:
        assert f"{results[name]['score']:.1f}" in lines
    assert "MMLU for tiny: 2 of 57 subjects." in lines
    page = (folder.parent / "report.html").read_text()
    assert "MMLU (5-shot)" in page
    assert "Qwen2.5-7B-LongPO-128K" in page
    assert "tiny: " in page


def test_a_rope_base_holds_for_short_tasks_too(plan, tiny, folder, tmp_path):
    raised = open_folder(Place(name="t", folder=tiny), dtype="auto", rotary_base=1e7, batch_tokens=16384, group_size=8)
    evaluate(dataclasses.replace(plan, short=["winogrande"]), raised, tmp_path)
    ours = [row["logps"] for row in read_lines(tmp_path / "samples.jsonl")]
    own = [row["logps"] for row in read_lines(folder / "samples.jsonl") if row["task"] == "winogrande"]
    assert not torch.allclose(torch.tensor(ours), torch.tensor(own))


def test_a_limit_takes_the_first_samples_of_each_task(plan, model, tmp_path):
    evaluate(dataclasses.replace(plan, limit=2, short=["mmlu", "hellaswag"]), model, tmp_path)
    short = json.loads((tmp_path / "results.json").read_text())["short"]
    assert {name: task["samples"] for name, task in short.items()} == {"mmlu": 4, "hellaswag": 2}


def test_clones_of_the_repositories_are_found_and_read(plan, model, tmp_path):
    data = write_short_data(tmp_path / "data", parquet=True)
    for name in ("arc_challenge", "hellaswag", "winogrande"):
        assert all(file.endswith(".parquet") for files in find_data(data, name).values() for file in files)
    assert find_subjects(data).keys() == {"anatomy", "virology"}
    evaluate(dataclasses.replace(plan, short_data=data, limit=1), model, tmp_path / "out")
    short = json.loads((tmp_path / "out" / "results.json").read_text())["short"]
    assert {name: task["samples"] for name, task in short.items()} == {
        "mmlu": 2,
        "arc_challenge": 1,
        "hellaswag": 1,
        "winogrande": 1,
    }


def test_data_that_are_missing_or_are_not_the_benchmarks_are_refused_in_one_line(plan, model, data, tmp_path):
    with pytest.raises(UserError, match=r"no files of ARC-C in .*ai2_arc/ARC-Challenge"):
        find_data(tmp_path, "arc_challenge")
    with pytest.raises(UserError, match="no subject of MMLU"):
        find_subjects(tmp_path)
    (tmp_path / "winogrande").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "winogrande" / f"{split}.jsonl").write_text('{"text": "no such column"}\n' * 8)
    with pytest.raises(UserError, match=r"short tasks: lm-eval failed \(KeyError: .*are the data as published") as caught:
        evaluate(dataclasses.replace(plan, short=["winogrande"], short_data=tmp_path), model, tmp_path / "out")
    assert "\n" not in str(caught.value)
    (tmp_path / "mmlu" / "sailing").mkdir(parents=True)
    for split in ("dev", "test"):
        (tmp_path / "mmlu" / "sailing" / f"{split}.jsonl").write_text((data / "mmlu" / "anatomy" / f"{split}.jsonl").read_text())
    with pytest.raises(UserError, match="'sailing' is no subject of MMLU"):
        evaluate(dataclasses.replace(plan, short=["mmlu"], short_data=tmp_path), model, tmp_path / "out")
