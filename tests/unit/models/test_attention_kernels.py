"""Each library's kernels get what makes them the attention that is meant. Those that need a GPU are stood for by fakes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_longpo.config.schema import TrainingConfig
from megatron_longpo.models import attention_kernels
from megatron_longpo.models.attention_kernels import (
    AttentionKernel,
    _cpu_backward,
    _cpu_forward,
    _cuda_backward,
    _cuda_forward,
    _package_backward,
    _package_forward,
    block_backward,
    block_forward,
    select_kernel,
)
from megatron_longpo.parallel import cpu_backend
from megatron_longpo.training.pretrained import check_hardware
from megatron_longpo.utils.errors import UserError
from tests.support.attention_blocks import check_blocks
from tests.unit.models import test_attention
from tests.unit.models.test_attention import TREES, inputs

CPU = AttentionKernel("PyTorch's CPU", _cpu_forward, _cpu_backward)
CUDA = AttentionKernel("PyTorch's CUDA", _cuda_forward, _cuda_backward)
PACKAGE = AttentionKernel("flash-attn", _package_forward, _package_backward)


def by_address(tensor: Tensor) -> Tensor:
    """What a kernel sees that reads a tensor from its address on, whatever its strides are."""
    return tensor.as_strided(tensor.shape, torch.empty(tensor.shape).stride())


class CudaOperators:
    """Stand for PyTorch's CUDA operators: check what these check, read what these read, answer with the CPU's kernel."""

    def __init__(self) -> None:
        self.read_without_strides: list[Tensor] = []

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool, return_debug_mask: bool, *,
        scale: float,
    ) -> tuple[Any, ...]:  # fmt: skip
        assert (dropout_p, return_debug_mask) == (0.0, False)
        assert {states.stride(-1) for states in (query, key, value)} == {1}
        out, lse = _cpu_forward(query, key, value, is_causal, scale)
        return out, lse, None, None, query.size(2), key.size(2), None, None, None

    def backward(
        self, grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, cum_seq_q: None,
        cum_seq_k: None, max_q: int, max_k: int, dropout_p: float, is_causal: bool, philox_seed: Tensor, philox_offset: Tensor,
        *, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        assert (cum_seq_q, cum_seq_k, max_q, max_k, dropout_p) == (None, None, query.size(2), key.size(2), 0.0)
        assert {states.stride(-1) for states in (query, key, value)} == {1}
        self.read_without_strides += [logsumexp, philox_seed, philox_offset]
        grad_out, out = grad_out.contiguous(), out.contiguous()
        return _cpu_backward(grad_out, query, key, value, out, by_address(logsumexp), is_causal, scale)


class FlashAttnPackage(ModuleType):
    """Stands for flash-attn's interface: checks what it is given, and answers with PyTorch's CPU kernel."""

    def __init__(self) -> None:
        super().__init__("flash_attn.flash_attn_interface")
        self._flash_attn_forward, self._flash_attn_backward = self.forward, self.backward
        self.read_without_strides: list[Tensor] = []
        self.deterministic = False

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, return_softmax: bool, **plain: Any) -> tuple[Tensor | None, ...]:
        assert not return_softmax
        out, lse = _cpu_forward(*(states.transpose(1, 2) for states in (q, k, v)), *self.checked(**plain))
        return out.transpose(1, 2), lse, None, None

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, dq: Tensor, dk: Tensor,
        dv: Tensor, *, deterministic: bool, rng_state: Any = None, **plain: Any,
    ) -> None:  # fmt: skip
        self.deterministic = deterministic
        self.read_without_strides.append(softmax_lse)
        heads_second = [states.transpose(1, 2) for states in (dout, q, k, v, out)]
        grads = _cpu_backward(*heads_second, by_address(softmax_lse), *self.checked(**plain))
        for made, grad in zip((dq, dk, dv), grads, strict=True):
            assert made.is_contiguous()
            made.copy_(grad.transpose(1, 2))

    @staticmethod
    def checked(
        *, dropout_p: float, softmax_scale: float, causal: bool, window_size_left: int, window_size_right: int, softcap: float,
        alibi_slopes: Any,
    ) -> tuple[bool, float]:  # fmt: skip
        assert (dropout_p, window_size_left, window_size_right, softcap, alibi_slopes) == (0.0, -1, -1, 0.0, None)
        return causal, softmax_scale


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> CudaOperators:
    fake = CudaOperators()
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention", fake.forward)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention_backward", fake.backward)
    return fake


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> FlashAttnPackage:
    fake = FlashAttnPackage()
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", fake)
    return fake


@pytest.fixture
def determinism() -> Iterator[None]:
    """What a run asks of PyTorch unless it is told not to."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kernel", [CUDA, PACKAGE], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("tree", TREES)
def test_a_gpu_s_kernel_gets_what_makes_it_the_same_attention(
    tree: str, kernel: AttentionKernel, operators: CudaOperators, package: FlashAttnPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, order, layout and alignment of arguments are checked against signatures; the kernels themselves need a GPU."""
    monkeypatch.setattr(attention_kernels, "select_kernel", lambda device, dtype, head_dim: kernel)
    test_attention.test_planned_attention_is_dense_attention(tree, torch.float64, 1e-12)


@pytest.mark.parametrize("kernel", [CUDA, PACKAGE], ids=lambda kernel: kernel.name)
def test_what_a_gpu_s_kernel_reads_without_strides_is_contiguous(
    kernel: AttentionKernel, operators: CudaOperators, package: FlashAttnPackage
) -> None:
    """Of a slice it would read the rows of other heads, and say nothing."""
    for chains in TREES.values():
        check_blocks(kernel, chains, inputs(chains[-1].end, torch.float64), 1e-10)
    read = (operators if kernel is CUDA else package).read_without_strides
    assert read
    assert all(tensor.is_contiguous() for tensor in read)


# bf16: the same rounding of scores, shares and results as a GPU's kernels have, which tests/gpu holds to the same bound
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("tree", TREES)
def test_each_block_is_attention_written_out(tree: str, dtype: torch.dtype, tolerance: float) -> None:
    check_blocks(CPU, TREES[tree], inputs(TREES[tree][-1].end, dtype, dim=64), tolerance)


def test_the_check_of_blocks_sees_a_log_sum_exp_that_is_read_without_strides() -> None:
    def misread(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, *settings: Any) -> Any:
        return _cpu_backward(grad, query, key, value, out, by_address(lse), *settings)

    kernel = AttentionKernel("misread", _cpu_forward, misread)
    for chains in TREES.values():
        with pytest.raises(AssertionError, match=r"d query of Block.*of the largest value"):
            check_blocks(kernel, chains, inputs(chains[-1].end, torch.bfloat16), 2e-2)


@pytest.mark.usefixtures("determinism")
def test_flash_attn_is_deterministic_where_pytorch_is_asked_to_be(package: FlashAttnPackage) -> None:
    check_blocks(PACKAGE, TREES["pair"], inputs(TREES["pair"][-1].end, torch.float64), 1e-10)
    assert package.deterministic


def test_flash_attn_is_fast_where_pytorch_is_not_asked_to_be_deterministic(package: FlashAttnPackage) -> None:
    check_blocks(PACKAGE, TREES["pair"], inputs(TREES["pair"][-1].end, torch.float64), 1e-10)
    assert not package.deterministic


def test_the_kernel_is_chosen_by_device_precision_and_package(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = select_kernel.__wrapped__
    assert "CPU" in chosen("cpu", torch.float32, 64).name
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "PyTorch's CUDA" in chosen("cuda", torch.bfloat16, 64).name
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "flash_attn" else None)
    assert chosen("cuda", torch.float16, 64).name == "flash-attn"
    with pytest.raises(UserError, match=r"needs --bf16: flash kernels do not take float32"):
        chosen("cuda", torch.float32, 64)


@pytest.mark.parametrize("head_dim", [4, 20, 100, 264])
def test_heads_that_flash_kernels_do_not_take_are_refused_on_a_gpu_alone(head_dim: int) -> None:
    chosen = select_kernel.__wrapped__
    with pytest.raises(UserError, match=rf"8, 16, \.\.\. or 256 channels, and this model's have {head_dim}; train it on a CPU"):
        chosen("cuda", torch.bfloat16, head_dim)
    assert "CPU" in chosen("cpu", torch.bfloat16, head_dim).name
    assert "CPU" not in chosen("cuda", torch.bfloat16, 256).name


def test_heads_are_looked_at_before_a_model_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backend, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(cpu_backend, "has_native_bf16", lambda: True)
    check_hardware(TrainingConfig(bf16=True), SimpleNamespace(kv_channels=64))
    with pytest.raises(UserError, match="this model's have 20"):
        check_hardware(TrainingConfig(bf16=True), SimpleNamespace(kv_channels=20))


@pytest.mark.parametrize("causal", [True, False])
def test_cuda_operators_accept_the_arguments_they_are_given(causal: bool) -> None:
    """On fake CUDA tensors: PyTorch checks number, order and types of arguments; it looks into none, and computes nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        del mode
        # not torch.empty: where a test before this one ran Megatron-Core on the CPU, that makes CPU tensors now
        query, key = (torch.randn(1, heads, 64, 64, device="cuda", dtype=torch.bfloat16) for heads in (8, 2))
        assert query.is_cuda
        out, lse = block_forward(query, key, key, causal=causal, scale=0.125)
        assert out.shape == query.shape
        assert out.dtype == torch.bfloat16
        assert lse.shape == (1, 8, 64)
        assert lse.dtype == torch.float32
        grads = block_backward(out, query, key, key, out, lse, causal=causal, scale=0.125)
        assert [grad.shape for grad in grads] == [query.shape, key.shape, key.shape]
