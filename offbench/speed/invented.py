"""A CUDA device on a machine that has none: programs are propagated and lowered for it, nothing runs.

The only place that reaches into torch's internals to that end. Everything is put back at the end of a
`with`, but for a device guard that does nothing (torch has no way to take one away), which only a
machine with a GPU would miss: there nothing is invented. Works with torch 2.11 and 2.13, CUDA build or
not, and for lowering with triton 3.6 to 3.9.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

CUDA = torch.device("cuda", 0)


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """FakeTensors may be on `CUDA`: shapes, strides, types and devices, no memory."""
    import torch._subclasses.fake_tensor as fake_tensor

    if not torch.cuda.is_available():
        torch._C._ensureCUDADeviceGuardSet()
    copy_ = lambda self, other, *more: torch.ops.aten.copy_.default(self, other, *more)
    with (
        # it asks the driver for a context
        mock.patch.object(fake_tensor, "init_gpu_context", lambda device: None),
        # the methods, unlike the operators, ask a CPU build for a guard
        mock.patch.object(fake_tensor.FakeTensor, "copy_", copy_),
        mock.patch.object(fake_tensor.FakeTensor, "contiguous", _contiguous),
    ):
        yield


def _contiguous(
    x: torch.Tensor, *, memory_format: torch.memory_format = torch.contiguous_format
) -> torch.Tensor:
    if x.is_contiguous(memory_format=memory_format):
        return x
    return torch.ops.aten.clone.default(x, memory_format=memory_format)


class Card(SimpleNamespace):
    """What compilers ask about a GPU, named as in `torch.cuda.get_device_properties`."""

    @property
    def capability(self) -> tuple[int, int]:
        return self.major, self.minor


def _card(name: str, major: int, minor: int, **more: int) -> Card:
    usual = dict(
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block=49152,
        is_integrated=0,
        gcnArchName="",
        uuid="invented",
    )
    return Card(name=name, major=major, minor=minor, **(usual | more))


# from the data sheets
CARDS = {
    "h100": _card(
        "NVIDIA H100 80GB HBM3",
        9,
        0,
        multi_processor_count=132,
        total_memory=85 * 10**9,
        L2_cache_size=50 * 2**20,
        shared_memory_per_block_optin=232448,
        shared_memory_per_multiprocessor=233472,
    ),
    "a100": _card(
        "NVIDIA A100-SXM4-80GB",
        8,
        0,
        multi_processor_count=108,
        total_memory=85 * 10**9,
        L2_cache_size=40 * 2**20,
        shared_memory_per_block_optin=166912,
        shared_memory_per_multiprocessor=167936,
    ),
}


@contextlib.contextmanager
def invented(card: Card) -> Iterator[None]:
    """Inductor and triton find this card, and compile for it as they would."""
    import triton
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.hints import DeviceProperties

    before = triton.runtime.driver._active
    with fake_cuda(), contextlib.ExitStack() as stack:
        for owner, values in _answers(card).items():
            stack.enter_context(mock.patch.multiple(owner, **values))
        for module in _inductor():
            for name in ("has_triton", "lazy_init"):
                if callable(getattr(module, name, None)):
                    # lazy_init traces patterns (attention, padding) on a real device
                    answer = True if name == "has_triton" else None
                    stack.enter_context(
                        mock.patch.object(module, name, lambda *a, answer=answer, **k: answer)
                    )
        # a generated kernel asks for the driver of a real GPU
        stack.enter_context(mock.patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
        # torch remembers what it was told of another card
        DeviceProperties.create.cache_clear()
        stack.callback(DeviceProperties.create.cache_clear)
        triton.runtime.driver.set_active(_driver(card))
        stack.callback(setattr, triton.runtime.driver, "_active", before)
        yield


def _driver(card: Card) -> Any:
    """Triton's driver of the card."""
    from triton.backends.compiler import GPUTarget

    number = 10 * card.major + card.minor
    return SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", number, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda *_: 0,
        get_active_torch_device=lambda: CUDA,
        binary_ext="cubin",
    )


def _answers(card: Card) -> dict[Any, dict[str, Any]]:
    """Owner -> what its functions answer."""
    from torch._dynamo.device_interface import CudaInterface

    stream = SimpleNamespace(cuda_stream=0, stream_id=0, device_index=0, device_type=1)
    return {
        torch.cuda: _always(
            is_available=True,
            is_initialized=False,
            device_count=1,
            current_device=0,
            get_device_properties=card,
            get_device_capability=card.capability,
            get_device_name=card.name,
            is_bf16_supported=True,
            current_stream=stream,
            get_rng_state=torch.zeros(16, dtype=torch.uint8),
            _exchange_device=0,
            _maybe_exchange_device=0,
            device=contextlib.nullcontext(),
            _DeviceGuard=contextlib.nullcontext(),
            **dict.fromkeys(("_lazy_init", "synchronize", "set_device", "set_rng_state")),
        ),
        CudaInterface: _always(
            staticmethod,
            is_available=True,
            device_count=1,
            current_device=0,
            get_device_properties=card,
            get_compute_capability=10 * card.major + card.minor,
            is_triton_capable=True,
            raise_if_triton_unavailable=None,
            synchronize=None,
        ),
        CudaInterface.Worker: _always(staticmethod, get_device_properties=card, current_device=0),
    }


def _always(wrap: Any = lambda f: f, **answers: Any) -> dict[str, Any]:
    """Functions that give these answers whatever they are asked."""
    return {name: wrap(lambda *a, answer=answer, **k: answer) for name, answer in answers.items()}


def _inductor() -> list[Any]:
    """torch's modules that have taken `has_triton` or `lazy_init` for themselves."""
    # so that they are there
    for name in ("compile_fx", "fx_passes.joint_graph", "fx_passes.post_grad", "scheduler"):
        importlib.import_module(f"torch._inductor.{name}")
    homes = ("torch._inductor", "torch.utils._triton")
    return [m for name, m in list(sys.modules.items()) if name.startswith(homes)]
