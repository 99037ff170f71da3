"""Held-out texts and their perplexity: the scripts of examples/small_model."""

import importlib.util
import json
import math
import sys
from pydoc_data.topics import topics

import pytest
import torch

from megatron_longpo.evaluation.models import Place, open_folder
from tests.support.hf_models import make_hf_model
from tests.support.recorded_commands import ROOT

HERE = ROOT / "examples" / "small_model"


def load(name):
    specification = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_hf_model(tmp_path_factory.mktemp("tiny"), "llama", max_position_embeddings=8192)


def test_no_text_has_a_topic_that_was_trained_on_and_topics_are_read_once():
    known = {"import", "calls"}
    texts = load("held_out").join_topics(known, 3, 50_000)
    assert all(len(text) >= 50_000 for text in texts)
    for name in known:
        assert not any(topics[name].strip()[:200] in text for text in texts)
    assert sum(topics["specialnames"].strip() in text for text in texts) == 1


def test_a_short_text_is_the_start_of_the_long_one(folder, tmp_path, monkeypatch):
    documents = tmp_path / "documents.jsonl"
    documents.write_text(json.dumps({"document_id": "python-specialnames", "text": ""}) + "\n")
    flags = ["--tokenizer-model", folder, "--documents", documents, "--lengths", 32, 64, "--output", tmp_path]
    monkeypatch.setattr(sys, "argv", ["held_out.py", *map(str, flags)])
    load("held_out").main()
    short, long = ([json.loads(line)["text"] for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()] for n in (32, 64))
    assert len(short) == len(long) == 2
    for a, b in zip(short, long, strict=True):
        assert b.startswith(a)
        assert len(b) > len(a)


def test_perplexity_is_that_of_the_model_s_own_log_probs(folder, tmp_path):
    text = "Of the gate little is told. The lamp is at the long bridge."
    path = tmp_path / "held.jsonl"
    path.write_text(json.dumps({"text": text}) + "\n")
    found = {}
    for base in (None, 1e6):
        model = open_folder(Place(name="tiny", folder=folder), dtype="float32", rotary_base=base, batch_tokens=64, group_size=1)
        found[base] = load("perplexity").measure(model, [path], 512)["held"]
        network, tokenizer = model.engine.model, model.tokenizer.tokenizer
        ids = tokenizer.encode(text, add_special_tokens=False)
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        with torch.no_grad():
            logits = network(torch.tensor([[first, *ids[:-1]]])).logits[0].double()
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum").item()
        assert found[base]["bits_per_byte"] == pytest.approx(nll / math.log(2) / len(text.encode()), rel=1e-4)
    assert found[None]["bits_per_byte"] != pytest.approx(found[1e6]["bits_per_byte"], rel=1e-6)
