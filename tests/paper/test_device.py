"""The device of paper: it computes what the CPU computes, counts its memory, and refuses what a GPU refuses.

The functions named `check_` run where the device is; torch is not imported here.
"""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

PAPER = "paper"


def test_it_computes_what_the_cpu_computes(on_paper: Callable[..., Any]) -> None:
    assert on_paper(check_arithmetic) == 37


def check_arithmetic() -> int:
    """How many functions gave equal values, shapes and strides on both."""
    import torch

    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    functions = {**plain_functions(x), **kernels(x)}
    with torch.no_grad():
        for name, (function, *tensors) in functions.items():
            check_same(name, function, *tensors)
    with torch.inference_mode():
        check_same("inference mode", lambda a: torch.nn.functional.conv2d(a, a[:, :, :3, :3]) + 1, x)
    return len(functions) + 1


def check_same(name: str, function: Callable[..., Any], *tensors: Any) -> None:
    import torch

    one, other = function(*tensors), function(*(tensor.to(PAPER) for tensor in tensors))
    pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
    for here, there in pairs:
        assert there.device.type == PAPER, name
        assert (here.dtype, here.shape, here.stride()) == (there.dtype, there.shape, there.stride()), name
        assert torch.equal(*(as_bytes(t) for t in (here, there.cpu()))), name


def as_bytes(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().view(-1).view(torch.uint8)


def plain_functions(x: Any) -> dict[str, tuple[Any, ...]]:
    """Arithmetic, views, indices, copies: name -> a function and what it takes."""
    import torch

    def set_items(a: Any) -> Any:
        b = a.clone()
        b[:, 1] = 0.5
        return b

    return {
        "arithmetic": (lambda a, b: a + b * 2 - 1, x, x),
        "views": (lambda a: a.permute(0, 2, 3, 1)[:, 1:, ::2].reshape(2, -1), x),
        "parts": (lambda a: a.flatten(2).transpose(1, 2).chunk(2, -1)[1], x),
        "in place": (lambda a: a.clone().mul_(2).add_(a).transpose_(0, 1), x),
        "set items": (set_items, x),
        "masks": (lambda a: a[a > 0], x),
        "nonzero": (lambda a: (a > 0).nonzero(), x),
        "index from the host": (lambda a: a[torch.tensor([1, 0])], x),
        "einsum": (lambda a: torch.einsum("bchw,bcHW->bhH", a, a), x),
        "rotary": (
            lambda a: torch.view_as_real(
                torch.view_as_complex(a.reshape(2, 4, 8, 4, 2))
                * torch.polar(torch.ones(8, 4, device=a.device), torch.arange(32.0, device=a.device).view(8, 4))
            ),
            x,
        ),
        "conjugates": (lambda a: torch.complex(a, a).conj() * 2, x),
        "float8": (lambda a: a.to(torch.float8_e4m3fn).to(torch.bfloat16), x),
        "another dtype's view": (lambda a: a.to(torch.float8_e4m3fn).view(torch.uint8), x),
        "joined": (lambda a: (torch.cat([a, a]), torch.stack([a, a])), x),
        "sorted": (lambda a: (a.sort(-1)[0], a.topk(2, -1)[1], a.cumsum(1)), x),
        "fft": (lambda a: torch.fft.ifftn(torch.fft.fftn(a)).real, x),
        "out": (lambda a: torch.add(a, a, out=torch.empty(0, device=a.device)), x),
        "std": (lambda a: (a.std(-1), a.var(-1), a.mean(-1)), x),
        "factories": (lambda a: torch.linspace(0, 1, 7, device=a.device) + torch.full((7,), 3.0, device=a.device), x),
        "alike": (lambda a: torch.zeros_like(a) + torch.ones_like(a) + a.new_tensor([1.0] * 8), x),
        "a number of the host": (lambda a: a * torch.tensor(2.0), x),
    }


def kernels(x: Any) -> dict[str, tuple[Any, ...]]:
    """The layers of models: name -> a function and what it takes."""
    import torch
    import torch.nn.functional as F

    half, mask = x[0].bfloat16(), torch.ones(8, 8, dtype=torch.bool).tril()
    return {
        "conv2d": (lambda a, w: F.conv2d(a, w, padding=1), x, torch.randn(5, 4, 3, 3)),
        "conv3d": (lambda a, w: F.conv3d(a, w, padding=1), x[None], torch.randn(5, 2, 3, 3, 3)),
        "transposed": (lambda a, w: F.conv_transpose1d(a, w, stride=2), x.flatten(2), torch.randn(4, 5, 3)),
        "group norm": (lambda a: F.group_norm(a, 2), x),
        "layer norm": (lambda a: F.layer_norm(a, (8,)), x),
        "rms norm": (lambda a: F.rms_norm(a, (8,)), x),
        "attention": (lambda a: F.scaled_dot_product_attention(a, a, a), x),
        "masked attention": (lambda a, m: F.scaled_dot_product_attention(a, a, a, attn_mask=m), x, mask),
        "linear": (F.linear, x[0], torch.randn(6, 8), torch.randn(6)),
        "linear, bfloat16": (F.linear, half, torch.randn(6, 8).bfloat16(), torch.randn(6).bfloat16()),
        "embedding": (F.embedding, torch.tensor([1, 2, 3]), torch.randn(6, 8)),
        "activations": (lambda a: F.gelu(a, approximate="tanh") + F.silu(a) + a.softmax(-1), x),
        "nearest": (lambda a: F.interpolate(a, scale_factor=2.0, mode="nearest"), x),
        "bilinear": (lambda a: F.interpolate(a, size=(5, 7), mode="bilinear"), x),
        "pad": (lambda a: F.pad(a, (1, 1, 0, 2)), x),
    }


def test_it_refuses_what_a_gpu_refuses(on_paper: Callable[..., Any]) -> None:
    on_paper(check_refusals)


def check_refusals() -> None:
    import torch
    import torch.nn.functional as F

    x = torch.randn(2, 4, 8, 8)
    there = x.to(PAPER)
    mixed: tuple[Callable[[], Any], ...] = (
        lambda: there + x,
        lambda: x.clone().add_(there),
        lambda: F.linear(there, torch.randn(3, 8)),
        lambda: F.conv2d(there, torch.randn(3, 4, 1, 1)),
        lambda: F.scaled_dot_product_attention(there, x, x),
        lambda: torch.where(x > 0, there, 0.0),
        lambda: F.embedding(torch.tensor(1), torch.randn(6, 8, device=PAPER)),
    )
    for function in mixed:
        with pytest.raises(RuntimeError, match="same device"):
            function()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.randn(2, device=PAPER, generator=torch.Generator())


def test_it_counts_its_memory_by_storage_and_runs_out(on_paper: Callable[..., Any]) -> None:
    on_paper(check_memory)


def check_memory() -> None:
    import torch

    from paper import device

    gc.collect()
    before = device.memory.now
    floats = torch.empty(100, device=PAPER)
    view = floats[10:20]
    bits = view.view(torch.int32)
    assert device.memory.now - before == 400
    del floats, view
    assert device.memory.now - before == 400  # the last view keeps it
    del bits
    assert device.memory.now == before
    layer = torch.nn.Linear(10, 10, bias=False).to(PAPER)
    assert device.memory.now - before == 400
    layer.to("cpu")
    assert device.memory.now == before
    with device.limited(before + 1000):
        with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 4000 bytes, 1000 bytes free"):
            torch.empty(1000, device=PAPER)
        torch.empty(250, device=PAPER)  # as much as there is
        with pytest.raises(torch.OutOfMemoryError):  # of the result: 400 bytes of one matrix are there, and 400 of both
            torch.ones(10, 10).to(PAPER) @ torch.ones(10, 10).to(PAPER)
    device.traffic.clear()
    torch.ones(3, dtype=torch.float16).to(PAPER).cpu()
    assert (device.traffic.size, device.traffic.count) == ({"to": 6, "from": 6}, {"to": 1, "from": 1})
    assert torch.ones(3, device=PAPER).sum().item() == 3
    assert device.traffic.reads == 1


def test_modules_live_there(on_paper: Callable[..., Any]) -> None:
    on_paper(check_modules)


def check_modules() -> None:
    import torch
    from torch import nn

    x = torch.randn(2, 4, 8, 8)
    module = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(256, 3)
    )
    module.register_buffer("kept", torch.ones(3))
    with torch.no_grad():
        expected = module(x)
        module.to(PAPER)
        assert {(type(part), part.device.type) for part in module.parameters()} == {(nn.Parameter, PAPER)}
        assert torch.equal(module(x.to(PAPER)).cpu(), expected)
        copied = copy.deepcopy(module)
        assert copied[0].weight.device.type == copied.kept.device.type == PAPER
        assert copied[0].weight.data_ptr() != module[0].weight.data_ptr()
        assert torch.equal(module.to("cpu")(x), expected)
    layer = nn.Linear(2, 2)
    layer.weight.data = layer.weight.data.to(PAPER)  # how hooks move weights
    assert (type(layer.weight), layer.weight.device.type) == (nn.Parameter, PAPER)
    nn.Linear(2, 2, device=PAPER).load_state_dict({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, assign=True)
    with torch.device(PAPER):
        assert nn.Linear(2, 2).weight.device.type == PAPER
    weight = nn.Parameter(torch.randn(3, 8).to(PAPER))
    nn.functional.linear(x.to(PAPER), weight).sigmoid().sum().backward()
    assert weight.grad is not None
    assert (weight.grad.device.type, weight.grad.shape) == (PAPER, (3, 8))


def test_torch_knows_it_as_it_knows_any_accelerator(on_paper: Callable[..., Any]) -> None:
    on_paper(check_interface)


def check_interface() -> None:
    import torch

    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() == torch.device(PAPER)
    backend = torch.get_device_module(PAPER)
    assert backend.memory_allocated() == torch.accelerator.memory_allocated()
    torch.accelerator.empty_cache(), torch.accelerator.synchronize()
    assert repr(torch.ones(2, device=PAPER)) == "tensor([1., 1.], device='paper:0')"
    assert (torch.ones(2).pin_memory().is_pinned(), torch.ones(2).is_pinned()) == (True, False)
    with torch.autocast(PAPER, dtype=torch.bfloat16):
        assert (torch.ones(2, 2, device=PAPER) @ torch.ones(2, 2, device=PAPER)).dtype == torch.bfloat16
    torch.manual_seed(1)
    drawn = torch.randn(4, device=PAPER).cpu()
    state = backend.get_rng_state()
    following = torch.rand(4, device=PAPER).cpu()
    torch.manual_seed(1)
    assert torch.equal(torch.randn(4, device=PAPER).cpu(), drawn)
    assert not torch.equal(torch.randn(4), drawn)  # the CPU's for the same seed are others, as with a GPU
    backend.set_rng_state(state)
    assert torch.equal(torch.rand(4, device=PAPER).cpu(), following)
    sums: list[float] = []
    thread = threading.Thread(target=lambda: sums.append((torch.ones(2, device=PAPER) + 1).sum().item()))
    thread.start(), thread.join()
    assert sums == [4]
