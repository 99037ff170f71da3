"""What conversion does not understand is refused, and the message names it."""

import enum
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import WriteItemType

from megatron_longpo.conversion.export_hf import mcore_to_hf
from megatron_longpo.conversion.hf_folder import open_hf_folder
from megatron_longpo.conversion.import_hf import hf_to_mcore
from megatron_longpo.conversion.record import find_iteration
from megatron_longpo.conversion.safe_metadata import check_metadata, read_metadata
from megatron_longpo.utils.errors import UserError
from tests.support.hf_models import make_hf_model
from tests.support.weights import read_weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_model(tmp_path_factory.mktemp("hf"), "llama", num_hidden_layers=2, max_shard_size="60KB")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "hf")


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, change) -> None:
    weights = read_weights(folder)
    for file in folder.glob("model*"):
        file.unlink()
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "mixtral"}, "model_type = 'mixtral'"),
        ({"model_type": None}, "model_type = None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "'longrope'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "layer to layer"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 3}, "lacks tensors .*model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "does not have: model.layers.1.input_layernorm.weight"),
        ({"vocab_size": 328}, "lm_head.weight|model.embed_tokens.weight has shape"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens.weight"),
    ],
)
def test_a_configuration_that_is_not_understood(folder, fields, named):
    change_config(folder, **fields)
    with pytest.raises(UserError, match=named) as refusal:
        open_hf_folder(folder)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_mistral_whose_window_is_the_default(tmp_path):
    folder = make_hf_model(tmp_path, "mistral")
    config = json.loads((folder / "config.json").read_text())
    del config["sliding_window"]  # transformers then assumes 4096
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="sliding_window = 4096"):
        open_hf_folder(folder)


def extra(weights):
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)


def missing(weights):
    del weights["model.norm.weight"]


def quantised(weights):
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)


def mixed(weights):
    weights["model.layers.0.self_attn.k_proj.weight"] = weights["model.layers.0.self_attn.k_proj.weight"].half()


def transposed(weights):
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].T.contiguous()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (extra, "model.layers.0.self_attn.q_proj.bias"),
        (missing, "model.norm.weight"),
        (quantised, "model.norm.weight has dtype I8"),
        (mixed, "k_proj.weight, .*one dtype"),
        (transposed, r"model.layers.1.mlp.up_proj.weight has shape \[64, 96\]"),
    ],
)
def test_weights_that_do_not_fit(folder, tmp_path, change, named):
    change_weights(folder, change)
    with pytest.raises(UserError, match=named):
        hf_to_mcore(folder, tmp_path / "native")
    assert not (tmp_path / "native").exists()


def only_pickles(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def disguised_pickle(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    torch.save({}, folder / "model.safetensors")


def no_weights(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()


def cut_off(folder: Path) -> None:
    shard = sorted(folder.glob("model-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def lost_shard(folder: Path) -> None:
    sorted(folder.glob("model-*"))[1].unlink()


def shard_elsewhere(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = "../other.safetensors"
    path.write_text(json.dumps(index))


def stale_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))


def not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (only_pickles, "pytorch_model.bin is a pickle"),
        (disguised_pickle, "model.safetensors: not a safetensors file but a pickle"),
        (no_weights, "neither model.safetensors nor"),
        (cut_off, "model-00002-of-.*ends before tensor"),
        (lost_shard, "model-00002-of-.* does not exist"),
        (shard_elsewhere, "'../other.safetensors'"),
        (stale_index, "disagree about model.norm.weight"),
        (not_json, "config.json is not JSON"),
        (no_config, "config.json does not exist"),
    ],
)
def test_a_damaged_folder(folder, damage, named):
    damage(folder)
    with pytest.raises(UserError, match=named):
        open_hf_folder(folder)


@pytest.fixture
def native(folder, tmp_path):
    hf_to_mcore(folder, tmp_path / "native")
    return tmp_path / "native"


class Exploit:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_index_that_would_run_code_is_refused_unopened(native, tmp_path):
    index = find_iteration(native) / ".metadata"
    index.write_bytes(pickle.dumps(Exploit(tmp_path / "ran")))
    for attempt in (lambda: check_metadata(find_iteration(native)), lambda: mcore_to_hf(native, tmp_path / "back")):
        with pytest.raises(UserError, match="asks for pathlib"):
            attempt()
    assert not (tmp_path / "ran").exists()
    with index.open("rb") as stream:  # the same bytes do run where nobody checks: the test can fail
        pickle.load(stream)
    assert (tmp_path / "ran").exists()


def test_an_index_with_code_inside_a_genuine_one_is_refused(native, tmp_path):
    index = find_iteration(native) / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    metadata.planner_data = Exploit(tmp_path / "ran")
    index.write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="asks for pathlib"):
        check_metadata(find_iteration(native))
    assert not (tmp_path / "ran").exists()


class ByName(pickle.Pickler):
    """Writes members of enumerations as Python 3.11.2 does, Debian 12's."""

    def reducer_override(self, value):
        return (getattr, (type(value), value.name)) if isinstance(value, enum.Enum) else NotImplemented


class Attribute:
    """Is pickled as a call of `getattr`."""

    def __init__(self, kind: type, name: str) -> None:
        self.kind, self.name = kind, name

    def __reduce__(self):
        return getattr, (self.kind, self.name)


def test_an_index_that_gets_its_enumerations_by_name_is_read(native, tmp_path):
    index = find_iteration(native) / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    with index.open("wb") as stream:
        ByName(stream).dump(metadata)
    assert b"getattr" in index.read_bytes()
    assert read_metadata(find_iteration(native)) == metadata
    mcore_to_hf(native, tmp_path / "back")


@pytest.mark.parametrize("kind", [Metadata, WriteItemType])
@pytest.mark.parametrize("name", ["__subclasses__", "mro", "__init__"])
def test_an_index_that_gets_anything_else_by_name_is_refused(native, kind, name):
    (find_iteration(native) / ".metadata").write_bytes(pickle.dumps(Attribute(kind, name)))
    with pytest.raises(UserError, match=f"asks for '{name}' of something that is no enumeration"):
        check_metadata(find_iteration(native))


def test_a_small_object_that_would_run_code_is_refused(native, tmp_path):
    folder = find_iteration(native)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    name = "decoder.layers.mlp.linear_fc1._extra_state/shard_0_2"
    place = next(info for index, info in metadata.storage_data.items() if index.fqn == name)
    torch.save([Exploit(tmp_path / "ran")], tmp_path / "object")
    exploit = (tmp_path / "object").read_bytes()
    place.offset, place.length = (folder / place.relative_path).stat().st_size, len(exploit)
    with (folder / place.relative_path).open("ab") as shard:
        shard.write(exploit)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="more than plain data"):
        check_metadata(folder)
    assert not (tmp_path / "ran").exists()


def test_common_data_that_would_run_code_is_refused(native, tmp_path):
    torch.save({"args": Exploit(tmp_path / "ran")}, find_iteration(native) / "common.pt")
    with pytest.raises(UserError, match=r"common.pt is refused: it is more than plain data"):
        check_metadata(find_iteration(native))
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_is_not_whole(native, tmp_path):
    folder = find_iteration(native)
    shard = folder / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"__0_0.distcp is missing or cut off"):
        check_metadata(folder)
    with pytest.raises(UserError, match=r"__0_0.distcp is missing or cut off"):
        mcore_to_hf(native, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda record: record["architecture"].update(num_layers=3), r"decoder.layers.* has shape"),
        (lambda record: record["architecture"].update(add_qkv_bias=True), "linear_qkv.bias"),
        (lambda record: record["architecture"].update(tie_word_embeddings=True), "unexpected .*output_layer.weight"),
        (lambda record: record.update(version=0), "version 0"),
        (lambda record: record.pop("source"), "damaged"),
    ],
)
def test_a_record_that_does_not_fit_its_checkpoint(native, tmp_path, change, named):
    path = find_iteration(native) / "longpo_model.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=named):
        mcore_to_hf(native, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("tracker", "named"), [("soon", "'soon'"), ("7", "iter_0000007"), (None, "latest_checkpointed_iteration.txt")]
)
def test_a_directory_without_the_checkpoint_that_it_promises(native, tmp_path, tracker, named):
    (native / "latest_checkpointed_iteration.txt").unlink()
    if tracker:
        (native / "latest_checkpointed_iteration.txt").write_text(tracker)
    with pytest.raises(UserError, match=named):
        mcore_to_hf(native, tmp_path / "back")
