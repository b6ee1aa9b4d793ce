"""Speed that costs no accuracy: how images and weights lie in memory, and compiling."""

from collections.abc import Iterator

import torch
from torch import nn

from facelab.errors import ConfigError
from lightning_modules.landmark import LandmarkModule

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def prepare(module: LandmarkModule, memory_format: str, compile: bool) -> None:
    """Lay out a module's weights, and from now on its images, and compile its networks; in place.

    Results stay the same but for rounding, and so do the names of its weights in a checkpoint.

    Args:
        module: before its first step; it may be moved to another device afterwards.
        memory_format: ``channels_last``, which convolutions on a CPU and tensor cores prefer, or ``contiguous``.
        compile: let torch translate the networks to code of their own at their first call, and again for other sizes of
            batch: half a minute or more, which a short run does not earn back. Loss, coder and metrics are left alone.

    Raises:
        ConfigError: another value, or this machine cannot compile.
    """
    if memory_format not in MEMORY_FORMATS:
        raise ConfigError("memory_format", f"={memory_format}: {' or '.join(MEMORY_FORMATS)} expected")
    if type(compile) is not bool:
        raise ConfigError("compile", f"={compile}: true or false expected")
    module.memory_format = MEMORY_FORMATS[memory_format]
    module.to(memory_format=module.memory_format)
    if compile:
        _check_compiler()
        # Each by itself and not the whole module: a copy of it, as averaging of weights makes, would still call the
        # original, and distributed training would compile the training step with all that it logs.
        for network in _networks(module):
            network.compile()


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost parts with parameters that are called; lists of parts are not."""
    for part in module.children():
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            yield from _networks(part)
        elif any(True for _ in part.parameters()):
            yield part


def _check_compiler() -> None:
    """Compile next to nothing, so that a machine that cannot says so now and not in the first step.

    Raises:
        ConfigError: it failed; says why.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(torch.neg)(torch.zeros(1, device=device))
    except Exception as error:  # what is lacking shows in many ways
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            "compile",
            f"=true: torch cannot compile here: {reason}\n"
            "It needs a C++ compiler (g++, or what CXX names) and on a GPU triton; compile=false needs neither.",
        ) from error
