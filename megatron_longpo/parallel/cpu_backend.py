"""Let Megatron-Core run on a CPU with gloo. Inert where CUDA exists; the only module that patches a library.

Megatron-Core names CUDA in its schedules, its gradient buffers, its optimizers and its random-state tracker, without a
switch. On a machine without CUDA every one of those calls has an obvious CPU meaning, given here once:

* ``torch.cuda.current_device()`` is used as the ``device=`` of new tensors: answer with the CPU device.
* ``torch.cuda.synchronize`` and streams order work that a CPU runs in order anyway: do nothing.
* ``device="cuda"`` written out in tensor factories, and ``pin_memory``: drop both. Plain function wrappers, not a
  ``TorchFunctionMode``: a mode is switched off inside ``Tensor.backward()``, where activation recomputation runs the forward
  again.
* ``Tensor.type()``: optimizers sort gradients by comparing it with ``"torch.cuda.FloatTensor"``: answer with the CUDA spelling.
* the CUDA random-state tracker: keep its states with the CPU generator. Left alone it does not fail: it queues a closure and a
  stack trace for a CUDA initialisation that never comes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

_CPU = torch.device("cpu")
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "empty_like", "zeros_like")


def has_cuda() -> bool:
    """Whether this process computes on CUDA. Every other module asks here."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """The device that this process computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda() else _CPU


def communication_backend() -> str:
    """The ``torch.distributed`` backend that belongs to `device`."""
    return "nccl" if has_cuda() else "gloo"


def has_native_bf16() -> bool:
    """Whether bf16 arithmetic is done in hardware: any CUDA device that supports it, or a CPU with AMX or AVX-512 bf16."""
    if has_cuda():
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


class _InOrderStream:
    """Stands for a CUDA stream on a device that has none: everything has already happened in order."""

    def wait_stream(self, _other: object) -> None: ...

    def wait_event(self, _event: object) -> None: ...

    def synchronize(self) -> None: ...


def _names_cuda(where: object) -> bool:
    return (isinstance(where, str) and where.startswith("cuda")) or (isinstance(where, torch.device) and where.type == "cuda")


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> Any:
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    create.__dict__["is_cpu_redirection"] = True
    return create


def _cuda_spelling(tensor_type: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(tensor_type)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = tensor_type(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    return type_


def install() -> bool:
    """Redirect Megatron-Core's CUDA calls to the CPU. Call before any Megatron-Core object is built; repeating is harmless.

    Returns:
        True if the redirections are in place after the call; False, with nothing touched, where CUDA exists.
    """
    if has_cuda():
        return False
    if getattr(torch.zeros, "is_cpu_redirection", False):
        return True
    from megatron.core.tensor_parallel import random as mcore_random

    # PyTorch lists what ``with torch.device(...)`` acts on when first asked, by identity: let it list its own functions.
    # transformers builds models under such a context, and would leave their buffers empty.
    torch.utils._device._device_constructors()
    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    cuda.synchronize = lambda *_, **__: None
    cuda.current_stream = lambda *_, **__: _InOrderStream()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    tensor: Any = torch.Tensor
    tensor.cuda = lambda self, *_, **__: self
    tensor.type = _cuda_spelling(torch.Tensor.type)

    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    random: Any = mcore_random
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    return True
