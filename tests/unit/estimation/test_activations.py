"""The formula of what a layer keeps for the backward equals the storages that a real model's graph holds, to the byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from megatron_longpo.config.schema import ParallelConfig, RunConfig, TrainingConfig
from megatron_longpo.estimation.layer import layer_bytes
from megatron_longpo.estimation.memory import Ranks, _kept, stage_parameters
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.parallel.packed_sequence import Chain, PackedInput, chain_positions

LLAMA = ModelArchitecture(
    family="llama", num_layers=2, hidden_size=24, ffn_hidden_size=40, num_attention_heads=4, num_query_groups=2, kv_channels=8,
    vocab_size=50, norm_epsilon=1e-5, rotary_base=1e4, max_position_embeddings=64,
)  # fmt: skip
QWEN3 = dataclasses.replace(LLAMA, family="qwen3", qk_layernorm=True, num_query_groups=1)
QWEN2 = dataclasses.replace(LLAMA, family="qwen2", add_qkv_bias=True, tie_word_embeddings=True)
ROWS = 48
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {"recompute_granularity": "full"},
    "full-by-two": {"recompute_granularity": "full", "recompute_num_layers": 2},
    "full-keep": {"recompute_granularity": "full", "recompute_attention": False},
    "block": {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1},
    "block-keep": {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": 1,
        "recompute_attention": False,
    },
}


@pytest.fixture(scope="module")
def state() -> Iterator[Any]:
    from megatron_longpo.parallel import state as parallel_state

    yield parallel_state.initialize(ParallelConfig())
    parallel_state.destroy()


def packed_input() -> PackedInput:
    chains = (Chain(0, 40), Chain(40, 8, 0, 32))
    positions = torch.tensor([position for run in chain_positions(chains) for position in run])
    words = torch.arange(ROWS) % LLAMA.vocab_size
    return PackedInput(tokens=words, labels=words, position_ids=positions, chains=chains, length=ROWS)


def kept_bytes(architecture: ModelArchitecture, training: TrainingConfig, state: Any) -> int:
    """Bytes of storages that a forward pass leaves for the backward, parameters aside."""
    from megatron_longpo.models.gpt import build_model

    (model,) = build_model(architecture, ParallelConfig(), training, state)
    held: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    packed = packed_input()
    attention = model.attention_of(packed)
    model.attention_of = lambda _: attention
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(packed)
    held += [tensor for memo in (attention.kept or {}).values() for tensor in memo]
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held if tensor.numel() > 1}
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


@pytest.mark.parametrize(
    ("architecture", "setting"),
    [*((LLAMA, setting) for setting in SETTINGS), (QWEN2, "none"), (QWEN3, "none")],
    ids=lambda found: found if isinstance(found, str) else found.family,
)
def test_two_more_layers_keep_what_the_formula_says(architecture: ModelArchitecture, setting: str, state: Any) -> None:
    training = TrainingConfig(train_iters=1, global_batch_size=1, **SETTINGS[setting])
    config = RunConfig(training=training)
    ranks = Ranks.of(config, architecture, 1)
    layer = layer_bytes(architecture, ranks, ROWS, 4, fused=False, exchange=config.parallel)
    measured = [kept_bytes(dataclasses.replace(architecture, num_layers=count), training, state) for count in (2, 4)]
    predicted = [_kept(layer, training, count)[0] for count in (2, 4)]
    # whole layers' difference only: embedding, rotary tables and head are the same in both
    assert measured[1] - measured[0] == predicted[1] - predicted[0]


def test_recomputation_keeps_less_in_the_order_that_it_costs(state: Any) -> None:
    kept = {
        name: kept_bytes(LLAMA, TrainingConfig(train_iters=1, global_batch_size=1, **SETTINGS[name]), state)
        for name in ("none", "selective", "block", "full-keep", "full")
    }
    assert kept["none"] > kept["selective"] > kept["full-keep"] > kept["full"]
    assert kept["none"] > kept["block"] > kept["full"]


@pytest.mark.parametrize("architecture", [LLAMA, QWEN2, QWEN3], ids=lambda found: found.family)
def test_parameters_are_counted_to_the_last(architecture: ModelArchitecture, state: Any) -> None:
    from megatron_longpo.models.gpt import build_model

    training = TrainingConfig(train_iters=1)
    (model,) = build_model(architecture, ParallelConfig(), training, state)
    assert stage_parameters(architecture, Ranks.of(RunConfig(), architecture, 1), 0) == sum(p.numel() for p in model.parameters())
