"""Hugging Face -> native -> Hugging Face gives every byte back, and the folder is a model that transformers loads."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_longpo.conversion.export_hf import mcore_to_hf
from megatron_longpo.conversion.fingerprint import digest_tensor, hash_tensors
from megatron_longpo.conversion.import_hf import hf_to_mcore
from megatron_longpo.conversion.record import ModelRecord, find_iteration
from megatron_longpo.conversion.safe_metadata import check_metadata
from megatron_longpo.utils.errors import UserError
from tests.support.hf_models import CHAT_TEMPLATE, VARIANTS, make_hf_model
from tests.support.weights import read_weights, same_bytes

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("family", VARIANTS)
def test_every_byte_comes_back(tmp_path, family):
    source = make_hf_model(tmp_path / "hf", family, dtype="bfloat16", max_shard_size="50KB")
    record = hf_to_mcore(source, tmp_path / "native")
    fingerprint = mcore_to_hf(tmp_path / "native", tmp_path / "back", max_shard_bytes=70_000)
    weights = read_weights(source)
    assert same_bytes(weights, read_weights(tmp_path / "back"))
    assert fingerprint == record.weights_sha256 == hash_tensors(digest_tensor(name, weights[name]) for name in weights)
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
    assert all(file.stat().st_size < 75_000 for file in (tmp_path / "back").glob("model-*.safetensors"))


@pytest.mark.parametrize("family", ["llama3-rope", "qwen3"])
def test_the_exported_folder_loads_in_transformers(tmp_path, family):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = make_hf_model(tmp_path / "hf", family)
    hf_to_mcore(source, tmp_path / "native")
    mcore_to_hf(tmp_path / "native", tmp_path / "back")
    tokens = torch.arange(100)[None]
    logits = [AutoModelForCausalLM.from_pretrained(folder)(tokens).logits for folder in (source, tmp_path / "back")]
    assert torch.equal(*logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "back").chat_template == CHAT_TEMPLATE
    for name in ("generation_config.json", "tokenizer.json"):
        assert (source / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


def test_mixed_dtypes_come_back(tmp_path):
    from safetensors.torch import save_file

    source = make_hf_model(tmp_path / "hf", "llama", dtype="bfloat16")
    weights = read_weights(source)
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in weights.items()}
    save_file(mixed, source / "model.safetensors", metadata={"format": "pt"})
    record = hf_to_mcore(source, tmp_path / "native")
    mcore_to_hf(tmp_path / "native", tmp_path / "back")
    assert same_bytes(mixed, read_weights(tmp_path / "back"))
    assert record.dtype == "bfloat16"
    assert set(record.other_dtypes) == {name for name in weights if "norm" in name}


def test_another_dtype_is_exported_on_demand(tmp_path):
    source = make_hf_model(tmp_path / "hf", "llama")
    hf_to_mcore(source, tmp_path / "native")
    mcore_to_hf(tmp_path / "native", tmp_path / "back", dtype="bfloat16")
    expected = {name: tensor.bfloat16() for name, tensor in read_weights(source).items()}
    assert same_bytes(expected, read_weights(tmp_path / "back"))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_export_of_a_training_tells_what_the_training_used(tmp_path):
    source = make_hf_model(tmp_path / "base-model", "mistral")
    record = hf_to_mcore(source, tmp_path / "native")
    architecture = dataclasses.replace(record.architecture, rotary_base=1e7, max_position_embeddings=131072)
    record.after_training(architecture, {"beta": 0.1}).write(tmp_path / "native" / "release")
    fingerprint = mcore_to_hf(tmp_path / "native", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (1e7, 1e7)
    assert (config["max_position_embeddings"], config["sliding_window"]) == (131072, None)
    card = (tmp_path / "back" / "README.md").read_text()
    for told in ("after training", "`base-model`", "| RoPE base | 1e+07 |", "131072", "| beta | 0.1 |", fingerprint):
        assert told in card
    again = hf_to_mcore(tmp_path / "back", tmp_path / "again")
    assert (again.architecture, again.weights_sha256, again.base_weights_sha256) == (architecture, fingerprint, None)


def test_the_card_of_untrained_weights_does_not_claim_training(tmp_path):
    hf_to_mcore(make_hf_model(tmp_path / "base-model", "llama"), tmp_path / "native")
    mcore_to_hf(tmp_path / "native", tmp_path / "back")
    card = (tmp_path / "back" / "README.md").read_text()
    assert "They were not trained" in card
    assert "after training" not in card


def test_a_tied_model_that_stores_its_output_layer_twice_is_accepted(tmp_path):
    from safetensors.torch import save_file

    source = make_hf_model(tmp_path / "hf", "smollm2")
    weights = read_weights(source)
    twice = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file(twice, source / "model.safetensors", metadata={"format": "pt"})
    hf_to_mcore(source, tmp_path / "native")
    mcore_to_hf(tmp_path / "native", tmp_path / "back")
    assert same_bytes(weights, read_weights(tmp_path / "back"))


def test_a_checkpoint_passes_the_check_that_loading_makes(tmp_path):
    hf_to_mcore(make_hf_model(tmp_path / "hf", "qwen2"), tmp_path / "native")
    check_metadata(find_iteration(tmp_path / "native"))


def test_the_fingerprint_depends_on_content_not_on_shards(tmp_path):
    one = hf_to_mcore(make_hf_model(tmp_path / "one", "llama"), tmp_path / "a")
    shards = hf_to_mcore(make_hf_model(tmp_path / "shards", "llama", max_shard_size="50KB"), tmp_path / "b")
    other = hf_to_mcore(make_hf_model(tmp_path / "other", "llama", seed=1), tmp_path / "c")
    assert one.weights_sha256 == shards.weights_sha256 != other.weights_sha256


def test_repeating_a_conversion_does_nothing(tmp_path):
    source = make_hf_model(tmp_path / "hf", "llama")
    first = hf_to_mcore(source, tmp_path / "native")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "native").rglob("*")}
    assert hf_to_mcore(source, tmp_path / "native") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "native").rglob("*")} == times
    exported = mcore_to_hf(tmp_path / "native", tmp_path / "back")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "back").rglob("*")}
    assert mcore_to_hf(tmp_path / "native", tmp_path / "back") == exported
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "back").rglob("*")} == times


def test_another_input_does_not_overwrite(tmp_path):
    hf_to_mcore(make_hf_model(tmp_path / "one", "llama"), tmp_path / "native")
    with pytest.raises(UserError, match="other weights"):
        hf_to_mcore(make_hf_model(tmp_path / "other", "llama", seed=1), tmp_path / "native")
    with pytest.raises(UserError, match="another configuration"):
        hf_to_mcore(make_hf_model(tmp_path / "longer", "llama", max_position_embeddings=4096), tmp_path / "native")
    mcore_to_hf(tmp_path / "native", tmp_path / "back")
    with pytest.raises(UserError, match="not this export"):
        mcore_to_hf(tmp_path / "native", tmp_path / "back", dtype="bfloat16")


def test_an_interrupted_conversion_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    source = make_hf_model(tmp_path / "hf", "llama")
    with monkeypatch.context() as patched:
        patched.setattr("megatron_longpo.conversion.import_hf.hash_tensors", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            hf_to_mcore(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()
    hf_to_mcore(source, tmp_path / "native")
    assert not (tmp_path / "native.partial").exists()


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    source = make_hf_model(tmp_path / "hf", "qwen2", max_shard_size="50KB")
    record = hf_to_mcore(source, tmp_path / "one")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    scripts = ROOT / "checkpoint_conversion"
    for script, *arguments in (
        ("hf_to_mcore.py", "--hf", source, "--save", tmp_path / "two"),
        ("mcore_to_hf.py", "--load", tmp_path / "two", "--save", tmp_path / "back", "--max-shard-size", "100KB"),
    ):
        with (tmp_path / "log").open("w") as log:
            subprocess.run(
                [*launch, scripts / script, *arguments], env=environment, stdout=log, stderr=log, timeout=240, check=True
            )
    assert ModelRecord.read(tmp_path / "two" / "release") == record
    assert {file.name for file in (tmp_path / "two" / "release").glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    assert same_bytes(read_weights(source), read_weights(tmp_path / "back"))
    assert json.loads((tmp_path / "back" / "longpo_export.json").read_text())["weights_sha256"] == record.weights_sha256
