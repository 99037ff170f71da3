"""A Hugging Face model folder: its configuration, its weights' index, its small files; checked before anything is converted."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from megatron_longpo.conversion.fingerprint import digest_tensor
from megatron_longpo.conversion.layout import HF_EMBEDDING, HF_OUTPUT, build_layout, hf_shapes
from megatron_longpo.conversion.safetensors_io import StoredTensor, read_index
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.hf_config import architecture_from_hf
from megatron_longpo.utils.errors import UserError

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What makes a folder usable besides the weights: tokenizer, templates, generation settings, terms of use
ASSET_PATTERNS = (
    CONFIG, "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
# Buffers in Llama checkpoints of 2023, recomputed from rope_theta by every reader
_LEGACY_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_NAMES_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class HfFolder:
    """An understood folder.

    Attributes:
        path: the folder.
        config: the parsed config.json.
        architecture: what it describes.
        tensors: exactly the tensors that the architecture asks for.
    """

    path: Path
    config: dict[str, Any]
    architecture: ModelArchitecture
    tensors: dict[str, StoredTensor]

    @property
    def assets(self) -> list[Path]:
        """The small files that belong to the model, in name order."""
        return sorted({file for pattern in ASSET_PATTERNS for file in self.path.glob(pattern) if file.is_file()})


def open_hf_folder(path: Path) -> HfFolder:
    """Open and check a folder; no weights are read but those of a duplicate output layer.

    Raises:
        UserError: if the folder is not a model, or anything in it is not understood; the message names it.
    """
    config = _read_json(path / CONFIG, "is this a Hugging Face model folder?")
    architecture = architecture_from_hf(config, str(path / CONFIG))
    stored = _read_weight_index(path)
    tensors = {name: tensor for name, tensor in stored.items() if not _LEGACY_BUFFER.fullmatch(name)}
    if architecture.tie_word_embeddings and HF_OUTPUT in tensors:
        _check_duplicate(path, tensors.get(HF_EMBEDDING), tensors.pop(HF_OUTPUT))
    _check_tensors(path, tensors, hf_shapes(build_layout(architecture)))
    return HfFolder(path, config, architecture, tensors)


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {hint}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def _read_weight_index(path: Path) -> dict[str, StoredTensor]:
    if (path / INDEX_FILE).exists():
        return _read_shards(path)
    if (path / SINGLE_FILE).exists():
        return read_index(path / SINGLE_FILE)
    pickles = sorted(file.name for pattern in PICKLE_PATTERNS for file in path.glob(pattern))
    if pickles:
        raise UserError(f"{path / pickles[0]} is a pickle, which is never opened; save the model again as safetensors")
    raise UserError(f"{path} has neither {SINGLE_FILE} nor {INDEX_FILE}")


def _read_shards(path: Path) -> dict[str, StoredTensor]:
    index = path / INDEX_FILE
    weight_map = _read_json(index, "").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UserError(f"{index} names {shard!r}, which is not a safetensors file of this folder")
        if not (path / shard).exists():
            raise UserError(f"{path / shard} does not exist, but {INDEX_FILE} names it; the download is incomplete")
        found = read_index(path / shard)
        promised = {name for name, file in weight_map.items() if file == shard}
        if promised != set(found):
            raise UserError(f"{path / shard} and {INDEX_FILE} disagree about {_some(promised ^ set(found))}")
        tensors |= found
    return tensors


def _check_duplicate(path: Path, embedding: StoredTensor | None, output: StoredTensor) -> None:
    # Some tied checkpoints store the shared matrix twice; only if both copies agree is it clear which one is meant
    if embedding is None or digest_tensor("", embedding.read()) != digest_tensor("", output.read()):
        raise UserError(
            f"{path}: {HF_OUTPUT} differs from {HF_EMBEDDING}, but config.json ties them; if they are meant to differ, set "
            "tie_word_embeddings to false"
        )


def _check_tensors(path: Path, tensors: dict[str, StoredTensor], expected: dict[str, tuple[int, ...]]) -> None:
    extra, missing = set(tensors) - set(expected), set(expected) - set(tensors)
    if extra:
        raise UserError(f"{path} holds tensors that the architecture in config.json does not have: {_some(extra)}")
    if missing:
        raise UserError(f"{path} lacks tensors that the architecture in config.json has: {_some(missing)}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(f"{path}: {name} has shape {list(tensors[name].shape)}; config.json asks for {list(shape)}")


def _some(names: set[str]) -> str:
    shown = sorted(names)[:_NAMES_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
