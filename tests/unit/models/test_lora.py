"""Adapters by themselves: how they begin, what they multiply, and which linears a name stands for."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from megatron_longpo.config.schema import LoraConfig
from megatron_longpo.models.lora import Adapter, LoraLinear
from megatron_longpo.models.lora_targets import LINEARS, hugging_face_names

SIZES = {"q_proj": (64, 48), "k_proj": (32, 48), "v_proj": (32, 48), "o_proj": (48, 64)}
QKV, PROJECTION = LINEARS[0], LINEARS[1]


@dataclasses.dataclass
class Ranks:
    """A tensor-parallel group of which nothing but the numbers is asked."""

    count: int
    mine: int

    def size(self) -> int:
        return self.count

    def rank(self) -> int:
        return self.mine


def made(target, rank: int = 0, count: int = 1, *, seed: int = 1, layer: int = 1, parts=None) -> Adapter:
    group = Ranks(count, rank)
    adapter = Adapter(target, parts or target.parts, SIZES, 2, LoraConfig(lora_rank=4), group, sequence_parallel=False)
    adapter.initialise(layer, seed)
    return adapter


def test_adapters_begin_as_pefts_do():
    from peft import LoraConfig as PeftConfig
    from peft.tuners.lora import Linear

    torch.manual_seed(0)
    theirs = Linear(torch.nn.Linear(4096, 64), "default", PeftConfig(r=64), r=64).lora_A["default"].weight
    sizes = {"o_proj": (64, 4096)}
    adapter = Adapter(PROJECTION, ("o_proj",), sizes, 1, LoraConfig(lora_rank=64), Ranks(1, 0), sequence_parallel=False)
    adapter.initialise(1, 1)
    ours = adapter.matrix("o_proj", "A")
    bound = 1 / math.sqrt(4096)
    assert theirs.abs().max() <= bound
    assert 0.99 * bound < ours.abs().max() <= bound
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.01)
    assert abs(ours.mean()) < 0.01 * bound
    assert not adapter.matrix("o_proj", "B").any()


@pytest.mark.parametrize("target", [QKV, PROJECTION], ids=lambda target: target.name)
def test_what_adapters_begin_with_does_not_depend_on_the_layout(target):
    whole, halves = made(target), [made(target, rank, 2) for rank in range(2)]
    for part in target.parts:
        ours = [half.matrix(part, "A") for half in halves]
        together = ours[0] if target.column_parallel else torch.cat(ours, dim=1)
        assert torch.equal(together, whole.matrix(part, "A"))
        assert not target.column_parallel or torch.equal(*ours)


def test_every_adapter_begins_elsewhere():
    first = made(QKV).matrix("q_proj", "A")
    others = [made(QKV, layer=2).matrix("q_proj", "A"), made(QKV, seed=2).matrix("q_proj", "A"), made(QKV).matrix("k_proj", "A")]
    assert not any(torch.equal(first, other) for other in others)
    assert torch.equal(first, made(QKV).matrix("q_proj", "A"))


class NormThenLinear(torch.nn.Module):
    """Transformer Engine's column-parallel linear, as far as an adapter sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm_weight, self.eps = torch.nn.Parameter(torch.rand(48) + 0.5), 1e-3
        self.weight = torch.nn.Parameter(torch.randn(128, 48))

    def forward(self, x):
        return self.normalised(x) @ self.weight.t(), None

    def normalised(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.layer_norm_weight


def test_an_adapter_reads_what_a_linear_with_a_norm_in_it_multiplies():
    torch.manual_seed(0)
    base, adapter = NormThenLinear(), made(QKV, parts=("v_proj",))
    torch.nn.init.normal_(adapter.matrix("v_proj", "B"))
    wrapped, x = LoraLinear(base, adapter), torch.randn(5, 1, 48)
    output, bias = wrapped(x)
    added = output - base(x)[0]
    expected = 8.0 * base.normalised(x) @ adapter.matrix("v_proj", "A").t() @ adapter.matrix("v_proj", "B").t()
    # two groups of [two query heads of 16 | one key | one value]
    grouped = added.unflatten(-1, (2, 64))
    assert bias is None
    assert torch.allclose(grouped[..., 48:].flatten(-2), expected, atol=1e-4)
    assert not grouped[..., :48].abs().gt(1e-5).any()
    wrapped.is_active = False
    assert torch.equal(wrapped(x)[0], base(x)[0])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("linear_qkv",), ("q_proj", "k_proj", "v_proj")),
        (("down_proj", "linear_fc1", "up_proj"), ("gate_proj", "up_proj", "down_proj")),
        (("v_proj", "q_proj"), ("q_proj", "v_proj")),
        (LoraConfig().lora_target_modules, tuple(part for linear in LINEARS for part in linear.parts)),
    ],
)
def test_names_of_both_kinds_stand_for_hugging_faces_linears(names, expected):
    assert hugging_face_names(names) == expected
