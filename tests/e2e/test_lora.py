"""Runs with adapters, as a user starts them: resumed bit for bit, exported for PEFT, merged, and refused where they must be."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.conversion.export_hf import mcore_to_hf
from megatron_longpo.conversion.import_hf import hf_to_mcore
from megatron_longpo.conversion.record import ModelRecord, find_iteration
from megatron_longpo.utils.errors import UserError
from tests.e2e.test_resume import metrics, weights
from tests.support.hf_models import make_hf_model
from tests.support.launch import Nursery
from tests.support.layouts import read_dump
from tests.support.scenario import ROTARY_BASE, Scenario, make_scenario
from tests.support.weights import read_weights, same_bytes
from tests.support.workers import Workers

TRAIN, EXPORT = "pretrain_longpo.py", "checkpoint_conversion/mcore_to_hf.py"
ITERATIONS = 4
# a learning rate that does not depend on the length of the run, so that a shorter run is the start of a longer one; and so
# large that four updates of B, which begins at zero, change the model plainly
COMMON = (
    *("--global-batch-size", 2, "--lr", 3e-2, "--adam-eps", 1e-3, "--lr-decay-style", "constant", "--lr-warmup-iters", 0),
    *("--reference", "live", "--rotary-base", ROTARY_BASE, "--lora-rank", 4, "--lora-alpha", 8, "--save-interval", 2),
)


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """A Qwen2.5: biases beside frozen and trained matrices."""
    return make_scenario(tmp_path_factory.mktemp("scenario"), "qwen2", num_documents=4, num_words=25, num_hidden_layers=2)


def arguments_for(scenario: Scenario, folder: Path, *extra: object, iterations: int = ITERATIONS) -> list[object]:
    inputs = ("--pretrained-checkpoint", scenario.native, "--data-path", scenario.prefix)
    return [*inputs, *COMMON, "--train-iters", iterations, "--save", folder, "--load", folder, *extra]


@pytest.fixture(scope="module")
def run(scenario: Scenario, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("run") / "lora"
    command = nursery.start(TRAIN, arguments_for(scenario, folder)).succeed()
    assert "trained) | " not in command.output()
    assert " trained)," in command.output()
    return folder


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    scenario: Scenario, nursery: Nursery, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    nursery.start(TRAIN, arguments_for(scenario, folder, iterations=2)).succeed()
    moved = tmp_path / "moved"
    shutil.copytree(scenario.native, moved)
    again = [moved if word == scenario.native else word for word in arguments_for(scenario, folder)]
    resumed = nursery.start(TRAIN, again).succeed()
    assert "resuming after iteration 2" in resumed.output()
    assert metrics(folder) == metrics(run)
    ours, theirs = weights(folder), weights(run)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    moments = {name for name in theirs if name.startswith("optimizer.")}
    assert all(".adapter." in name for name in theirs.keys() - moments), "a checkpoint holds more than adapters"
    assert all(theirs[name].any() for name in theirs.keys() - moments)


def test_a_run_goes_on_in_another_layout(scenario: Scenario, nursery: Nursery, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    split = ("--tensor-model-parallel-size", 2, "--sequence-parallel", "--use-distributed-optimizer")
    nursery.start(TRAIN, arguments_for(scenario, folder, *split, iterations=2), 2).succeed()
    staged = ("--pipeline-model-parallel-size", 2, "--use-distributed-optimizer")
    nursery.start(TRAIN, arguments_for(scenario, folder, *staged), 2).succeed()
    one, other = (read_dump(find_iteration(path)) for path in (run, folder))
    trained = [name for name in one if name.startswith("decoder.")]
    assert len(trained) == 14
    for name in trained:
        assert (one[name] - other[name]).abs().max() <= 2e-5, name


def test_a_checkpoint_holds_the_last_update_where_gathering_it_overlaps(
    scenario: Scenario, nursery: Nursery, tmp_path: Path
) -> None:
    folders = []
    for name, flags in (("plain", ()), ("overlapped", ("--overlap-grad-reduce", "--overlap-param-gather"))):
        folders.append(tmp_path / name)
        flags = ("--use-distributed-optimizer", *flags)
        nursery.start(TRAIN, arguments_for(scenario, folders[-1], *flags, iterations=2), 2).succeed()
    one, other = (read_dump(find_iteration(folder)) for folder in folders)
    for name in (name for name in one if name.startswith("decoder.")):
        assert torch.equal(one[name], other[name]), name


def policy_log_probs(config: Any, folder: str, tokens: torch.Tensor) -> torch.Tensor:
    """Next-token log-probs of the policy whose adapters lie in ``folder`` (runs inside a worker)."""
    from megatron.core import dist_checkpointing

    from megatron_longpo.models.gpt import build_model
    from megatron_longpo.models.lora import add_adapters
    from megatron_longpo.models.transformer_config import apply_overrides
    from megatron_longpo.parallel import state as parallel_state
    from megatron_longpo.parallel.packed_sequence import Chain, PackedInput
    from megatron_longpo.training.checkpoint import load_weights, model_state
    from megatron_longpo.training.pretrained import read_record

    architecture = apply_overrides(read_record(config.model.pretrained_checkpoint).architecture, config.model)
    state = parallel_state.initialize(config.parallel, 1)
    model = build_model(architecture, config.parallel, config.training, state)
    load_weights(model, config.model.pretrained_checkpoint)
    add_adapters(model, config.lora, 0)
    loaded = dist_checkpointing.load(model_state(model), str(find_iteration(Path(folder))))
    model[0].load_state_dict(loaded["model"], strict=False)
    labels = torch.cat([tokens[1:], tokens.new_full((1,), -100)])
    packed = PackedInput(tokens, labels, torch.arange(len(tokens)), (Chain(0, len(tokens)),), len(tokens))
    with torch.no_grad():
        return model[0](packed)[:-1]


def next_log_probs(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model(tokens[None]).logits[0]
    return logits[:-1].log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]


def test_peft_and_transformers_compute_what_the_run_computes(
    scenario: Scenario, nursery: Nursery, run: Path, workers: Workers, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    adapters, merged = tmp_path / "adapters", tmp_path / "merged"
    for folder, flags in ((adapters, ()), (merged, ("--merge",))):
        nursery.start(EXPORT, ["--load", run, "--save", folder, *flags]).succeed()
        assert "up to date" in nursery.start(EXPORT, ["--load", run, "--save", folder, *flags]).succeed().output()
    tokens = torch.arange(5, 205) % 256
    config = scenario.config(lora_rank=4, lora_alpha=8.0)
    ours = workers.run(1, policy_log_probs, config, str(run), tokens)[0]
    base = AutoModelForCausalLM.from_pretrained(scenario.hf)
    assert (next_log_probs(base, tokens) - ours).abs().max() > 1e-2, "the adapters do nothing: the comparison would say nothing"
    # as the model card says
    config = AutoConfig.from_pretrained(adapters)
    assert config.rope_parameters["rope_theta"] == ROTARY_BASE
    with_adapters = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(scenario.hf, config=config), adapters)
    found = [next_log_probs(model, tokens) for model in (with_adapters, AutoModelForCausalLM.from_pretrained(merged))]
    for log_probs in found:
        assert (log_probs - ours).abs().max() < 1e-4
    by_peft = with_adapters.merge_and_unload().state_dict()
    for name, tensor in read_weights(merged).items():
        assert (by_peft[name] - tensor).abs().max() < 1e-6, name
    assert AutoTokenizer.from_pretrained(adapters).chat_template == AutoTokenizer.from_pretrained(scenario.hf).chat_template
    assert "LoRA | rank 4, alpha 8, on q_proj" in (merged / "README.md").read_text()
    assert "PeftModel.from_pretrained" in (adapters / "README.md").read_text()


def test_peft_writes_the_same_files(run: Path, scenario: Scenario, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    mcore_to_hf(run, tmp_path / "ours")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(scenario.hf), tmp_path / "ours")
    model.save_pretrained(tmp_path / "peft")
    assert same_bytes(*(read_weights(tmp_path / folder) for folder in ("ours", "peft")))
    ours, theirs = (json.loads((tmp_path / folder / "adapter_config.json").read_text()) for folder in ("ours", "peft"))
    assert ours["base_model_name_or_path"] == str(scenario.hf)
    for settings in (ours, theirs):
        settings["target_modules"] = sorted(settings["target_modules"])
    assert {name: theirs[name] for name in ours} == ours


def refused(nursery: Nursery, arguments: list[object], script: str = TRAIN) -> str:
    command = nursery.start(script, arguments)
    assert command.wait() == [1]
    (line,) = command.output().strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_a_run_is_resumed_with_its_own_adapters_and_base(scenario: Scenario, nursery: Nursery, run: Path, tmp_path: Path) -> None:
    resume = arguments_for(scenario, run, iterations=6)
    line = refused(nursery, [*resume, "--lora-rank", 8])
    assert "trained with adapters of rank 4 and alpha 8 on q_proj, k_proj" in line
    assert "this run asks for adapters of rank 8" in line
    without = [word for word in resume if word not in ("--lora-rank", 4, "--lora-alpha", 8)]
    assert "this run asks for no adapters" in refused(nursery, without)
    other = hf_to_mcore(make_hf_model(tmp_path / "hf", "qwen2", seed=1, num_hidden_layers=2), tmp_path / "other")
    exchanged = [tmp_path / "other" if word == scenario.native else word for word in resume]
    assert f"has weights {other.weights_sha256}; give the first base" in refused(nursery, exchanged)


def test_adapters_alone_are_no_model_to_start_from(scenario: Scenario, nursery: Nursery, run: Path, tmp_path: Path) -> None:
    started = [run if word == scenario.native else word for word in arguments_for(scenario, tmp_path / "run")]
    assert "holds LoRA adapters, not a whole model; merge them" in refused(nursery, started)
    assert not (tmp_path / "run").exists()


def test_a_base_without_a_hash_is_refused(scenario: Scenario, nursery: Nursery, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(scenario.native, base)
    folder = find_iteration(base)
    dataclasses.replace(ModelRecord.read(folder), weights_sha256=None).write(folder)
    started = [base if word == scenario.native else word for word in arguments_for(scenario, tmp_path / "run")]
    assert "the base of --lora-rank needs the hash of its weights" in refused(nursery, started)


def test_what_cannot_be_merged_is_refused(scenario: Scenario, nursery: Nursery, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a whole model, there is nothing to --merge"):
        mcore_to_hf(scenario.native, tmp_path / "out", merge=True)
    hf_to_mcore(make_hf_model(tmp_path / "hf", "qwen2", seed=1, num_hidden_layers=2), tmp_path / "other")
    with pytest.raises(UserError, match=r"the adapters were trained on [0-9a-f]{64}; give their base with --base"):
        mcore_to_hf(run, tmp_path / "out", merge=True, base=tmp_path / "other")
    with pytest.raises(UserError, match="the base of the adapters is not there"):
        mcore_to_hf(run, tmp_path / "out", merge=True, base=tmp_path / "absent")
    line = refused(nursery, ["--load", run, "--save", tmp_path / "out", "--base", tmp_path], EXPORT)
    assert f"--base {tmp_path} has no effect without --merge" in line
    mcore_to_hf(run, tmp_path / "out")
    with pytest.raises(UserError, match="is not this export"):
        mcore_to_hf(run, tmp_path / "out", merge=True)
    shutil.copytree(scenario.native, tmp_path / "moved")
    mcore_to_hf(run, tmp_path / "merged", merge=True, base=tmp_path / "moved", dtype="bfloat16")
    assert {tensor.dtype for tensor in read_weights(tmp_path / "merged").values()} == {torch.bfloat16}
