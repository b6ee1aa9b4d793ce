"""Options that change the speed and not the accuracy: memory format and compilation."""

from collections.abc import Iterator

import torch
from torch import nn

from facelab.errors import ConfigError
from lightning_modules.method import MethodModule

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
"""Torch's memory formats by their name in the configuration."""


def set_format_and_compile(module: MethodModule, memory_format: str, compile: bool) -> None:
    """Set the memory format of a module's weights and future images, and compile its networks, in place.

    Results are the same except for rounding. The names of the weights in a checkpoint do not change.

    Args:
        module: module before its first step; it may be moved to another device afterwards.
        memory_format: ``channels_last``, which is faster for convolutions on a CPU and on tensor cores, or
            ``contiguous``.
        compile: compile the networks with torch at their first call and again for new sizes of batches and images, as
            the photos of a detector's validation have. This takes half a minute or more, too long for a short run.
            Loss, coder and metrics are not compiled.

    Raises:
        ConfigError: a value is none of the above, or torch cannot compile on this machine.
    """
    if memory_format not in MEMORY_FORMATS:
        raise ConfigError("memory_format", f"={memory_format}: {' or '.join(MEMORY_FORMATS)} expected")
    if type(compile) is not bool:
        raise ConfigError("compile", f"={compile}: true or false expected")
    module.memory_format = MEMORY_FORMATS[memory_format]
    module.to(memory_format=module.memory_format)
    if compile:
        _check_compiler()
        # Compile each network and not the whole module: a copy of a compiled module, as weight averaging makes, would
        # still call the original, and distributed training would compile the training step with its logging.
        for network in _networks(module):
            network.compile()


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost submodules with parameters; enter lists and dicts of modules, which are never called."""
    for part in module.children():
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            yield from _networks(part)
        elif any(True for _ in part.parameters()):
            yield part


def _check_compiler() -> None:
    """Compile a trivial function, to raise an error now and not in the first step.

    Raises:
        ConfigError: torch cannot compile on this machine; the message contains the reason.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(torch.neg)(torch.zeros(1, device=device))
    except Exception as error:  # the type of the error depends on what is missing
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            "compile",
            f"=true: torch cannot compile on this machine: {reason}\n"
            "It needs a C++ compiler (g++, or the one in CXX) and on a GPU triton; compile=false needs neither.",
        ) from error
