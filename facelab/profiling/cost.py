"""Cost of predicting the landmarks of one face: parameters, multiply-adds, milliseconds."""

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
"""Minimum number of calls before timing; the calls before timing also take at least a tenth of the measured time."""


class Latency(NamedTuple):
    """Percentiles of the duration of a call, in milliseconds."""

    p50: float
    p95: float
    calls: int  # number of timed calls


def cost(module: LandmarkModule, size: int, *, pose: bool) -> dict[str, int]:
    """Count the parameters, multiply-adds and floating point operations for the landmarks of one face.

    The count covers ``predict_points`` on one crop, from raw pixels to points, or ``predict``, which also predicts the
    head pose. It excludes the flip test, which runs the network twice. A parameter counts if an operator of that call
    reads it: the parameters of a training-only branch or of an unused layer do not count. Statistics of normalisation
    are not parameters.

    Args:
        module: model to measure; its device, memory format, training mode and flip test do not change.
        size: side of the crop in pixels.
        pose: include the prediction of the head pose.

    Returns:
        ``params``, ``macs`` and ``flops``. A MAC is one multiplication and one addition. As in papers, only
        convolutions and matrix products count (torch's ``FlopCounterMode``), not normalisation, activations and
        pooling. ``flops`` is twice ``macs``.
    """
    image = _crops(module, 1, size)
    eager = torch.compiler.set_stance("force_eager")  # the operators inside a compiled kernel are not visible
    predict = module.predict if pose else module.predict_points
    with _inference(module), eager, torch.no_grad(), Operands() as operands, FlopCounterMode(display=False) as counter:
        predict(image)
    flops = counter.get_total_flops()
    params = sum(parameter.numel() for parameter in module.parameters() if id(parameter) in operands.ids)
    return {"params": params, "macs": flops // 2, "flops": flops}


def latency(
    module: LandmarkModule, size: int, batch: int, seconds: float, repeats: int, threads: int, *, pose: bool
) -> Latency:
    """Measure the duration of ``predict_points`` on crops on the module's device, without the flip test.

    The time covers raw pixels to points, in float32 with torch's settings (TF32 in convolutions on a GPU). It excludes
    reading and cropping photos and copying crops to a GPU.

    Args:
        module: model to measure; it does not change.
        size: side of the crops in pixels.
        batch: number of crops in a call.
        seconds: minimum total time of the timed calls.
        repeats: minimum number of timed calls.
        threads: number of torch's threads on the CPU.
        pose: measure ``predict`` instead, which also predicts the head pose.
    """
    image = _crops(module, batch, size)
    predict = module.predict if pose else module.predict_points
    with _inference(module), _threads(threads), torch.inference_mode():
        _durations(predict, image, seconds / 10, WARM_UP)
        times = _durations(predict, image, seconds, repeats)
    p50, p95 = np.percentile(times, (50, 95)) * 1000
    return Latency(float(p50), float(p95), len(times))


def predicts_pose(module: LandmarkModule, size: int) -> bool:
    """Return whether a module predicts the head pose from crops of this side in pixels; it does not change."""
    with _inference(module), torch.inference_mode():
        return module.predict(_crops(module, 1, size)).pose is not None


def machine(device: torch.device) -> dict[str, str]:
    """Describe the machine: ``device``, ``cpu`` and the version of ``torch``."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "cpu": _processor(), "torch": torch.__version__}


def _processor() -> str:
    """Return the model name of the CPU, if the system reports it, and the number of cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{next(names, platform.processor() or platform.machine())}, {cores} cores"


def _crops(module: LandmarkModule, batch: int, size: int) -> Tensor:
    """Draw noise images as crops, ``(B, 3, H, W)`` uint8 on the module's device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator).to(module.device)


def _durations(predict: Callable[[Tensor], Any], image: Tensor, seconds: float, repeats: int) -> list[float]:
    """Time calls in seconds, for at least ``seconds`` in total and at least ``repeats`` times."""
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
    """Wait until a GPU has finished its work; a CPU works synchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _inference(module: LandmarkModule) -> Iterator[None]:
    """Set a module to evaluation mode without the flip test inside the block, then restore each submodule's mode."""
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
    """Set the number of torch's CPU threads inside the block, then restore the previous number."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
