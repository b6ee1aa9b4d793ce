"""What finding the landmarks of one face costs: parameters, multiply-adds, milliseconds."""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from facelab.internals.torch import Operands
from lightning_modules.landmark import LandmarkModule

WARM_UP = 3
"""Calls at least that are not timed; a tenth of the time that is measured goes before it as well."""


class Latency(NamedTuple):
    """How long one call takes, in milliseconds."""

    p50: float
    p95: float
    calls: int  # that were timed


def cost(module: LandmarkModule, size: int, *, pose: bool) -> dict[str, int]:
    """Parameters, multiply-adds and floating point operations behind the landmarks of one face.

    Counted is ``predict_points`` of one crop, from raw pixels to points, without the flip test, which runs the network
    twice; or ``predict``, which finds the head's pose with them. A parameter counts if an operator of that run reads
    it; so a branch that only training needs, or a layer that was adopted by nobody, does not, however a method builds
    it. Statistics of normalisation are no parameters.

    Args:
        module: left as it is: its device, its memory format, training or evaluation mode, flip test.
        size: side of the crop in pixels.
        pose: count what finds the head's pose as well.

    Returns:
        ``params``; ``macs``, one multiplication and one addition each, of convolutions and matrix products (torch's
        ``FlopCounterMode``), and not of normalisation, activations and pooling, as papers count; ``flops``, twice that.
    """
    image = _crops(module, 1, size)
    eager = torch.compiler.set_stance("force_eager")  # a compiled kernel would hide what it reads and does
    predict = module.predict if pose else module.predict_points
    with _inference(module), eager, torch.no_grad(), Operands() as operands, FlopCounterMode(display=False) as counter:
        predict(image)
    flops = counter.get_total_flops()
    params = sum(parameter.numel() for parameter in module.parameters() if id(parameter) in operands.ids)
    return {"params": params, "macs": flops // 2, "flops": flops}


def latency(
    module: LandmarkModule, size: int, batch: int, seconds: float, repeats: int, threads: int, *, pose: bool
) -> Latency:
    """How long ``predict_points`` takes for crops that lie on the module's device already, without the flip test.

    From raw pixels to points, and with ``predict`` to the head's pose, in 32-bit floats as torch computes with them
    (TF32 in convolutions on a GPU). Reading and cutting out photos and the way to a GPU are not in it.

    Args:
        module: left as it is.
        size: side of the crops in pixels.
        batch: crops in one call.
        seconds: for so long at least it is called.
        repeats: so often at least.
        threads: of torch on the CPU.
        pose: time ``predict`` instead, which finds the head's pose as well.
    """
    image = _crops(module, batch, size)
    predict = module.predict if pose else module.predict_points
    with _inference(module), _threads(threads), torch.inference_mode():
        _durations(predict, image, seconds / 10, WARM_UP)
        times = _durations(predict, image, seconds, repeats)
    p50, p95 = np.percentile(times, (50, 95)) * 1000
    return Latency(float(p50), float(p95), len(times))


def predicts_pose(module: LandmarkModule, size: int) -> bool:
    """Whether a module finds the head's pose in crops of this many pixels; it is left as it is."""
    with _inference(module), torch.inference_mode():
        return module.predict(_crops(module, 1, size)).pose is not None


def machine(device: torch.device) -> dict[str, str]:
    """What a time was measured on: ``device``, ``cpu`` and ``torch``'s version."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "cpu": _processor(), "torch": torch.__version__}


def _processor() -> str:
    """The CPU's own name, as far as the system tells it, and how many of its cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{next(named, platform.processor() or platform.machine())}, {cores} cores"


def _crops(module: LandmarkModule, batch: int, size: int) -> Tensor:
    """Noise as crops, ``(B, 3, H, W)`` uint8 on the module's device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator).to(module.device)


def _durations(predict: Callable[[Tensor], Any], image: Tensor, seconds: float, repeats: int) -> list[float]:
    """Seconds of each call; for so long and so often at least."""
    times: list[float] = []
    _synchronise(image.device)
    end = time.perf_counter() + seconds
    while len(times) < repeats or time.perf_counter() < end:
        start = time.perf_counter()
        predict(image)
        _synchronise(image.device)
        times.append(time.perf_counter() - start)
    return times


def _synchronise(device: torch.device) -> None:
    """Wait for a GPU to finish what it was given; a CPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _inference(module: LandmarkModule) -> Iterator[None]:
    """A module as it predicts, without the flip test; then as it was, each of its parts."""
    training, flip_test = {part: part.training for part in module.modules()}, module.flip_test
    module.eval()
    module.flip_test = False
    try:
        yield
    finally:
        module.flip_test = flip_test
        for part, mode in training.items():
            part.training = mode


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads; then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
