"""Published weights of the authors' codes, under the names of this project's layers."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from facelab.errors import CheckpointError

LISTED = 8
"""Largest number of names in an error message."""
COUNTER = "num_batches_tracked"
"""Buffer of a batch normalisation without effect on a trained network; files of old versions of torch lack it."""


class OfficialLayers(NamedTuple):
    """Correspondence of the layers of a module and of a public code."""

    # Layer of the module -> layers of the file, joined along their output channels.
    layers: Mapping[str, tuple[str, ...]]
    bgr: frozenset[str] = frozenset()  # layers of the module whose input channels are RGB, and in the file BGR
    unused: frozenset[str] = frozenset()  # layers of the file that the public code does not use
    # Layer of the module -> function from its weights in the file to the order of axes and features of the module.
    arranged: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({})

    def count_matches(self, names: Iterable[str]) -> int:
        """Count the tensors of a file that belong to the layers."""
        theirs = {layer for layers in self.layers.values() for layer in layers}
        return sum(name.rpartition(".")[0] in theirs for name in names)


def match_tensors(own: Mapping[str, Tensor], file: Mapping[str, Tensor], official: OfficialLayers) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of a module.

    Args:
        own: state of the parts of the module that the file must fill, by name.
        file: tensors of the file, by name.
        official: correspondence of the layers.

    Returns:
        One tensor for each name in ``own``, with its shape and type.

    Raises:
        CheckpointError: tensors are missing from the file or left over, or a tensor has another shape or a value that
            is not finite. A file that fits in part is refused.
    """
    sources = {name: _find_sources(name, official) for name in own}
    needed = {source for names in sources.values() for source in names}
    missing = [name for name in sorted(needed - set(file)) if not name.endswith(COUNTER)]
    left_over = [
        name
        for name in file
        if name not in needed and name.rpartition(".")[0] not in official.unused and not name.endswith(COUNTER)
    ]
    if missing or left_over:
        faults = ((missing, "missing from the file"), (left_over, "left over in the file"))
        raise CheckpointError("; ".join(f"{what}: {_list_names(names)}" for names, what in faults if names))
    return {name: _join(name, own[name], sources[name], file, official) for name in own}


def _find_sources(name: str, official: OfficialLayers) -> list[str]:
    """Return the names in the published file of the tensors that make up one of this model."""
    layer, _, tensor = name.rpartition(".")
    if layer not in official.layers:
        raise CheckpointError(f"no published weights belong to {layer} of this model; choose the parts of their code")
    return [f"{theirs}.{tensor}" for theirs in official.layers[layer]]


def _join(name: str, own: Tensor, sources: list[str], file: Mapping[str, Tensor], official: OfficialLayers) -> Tensor:
    """Return one tensor of the module from the file."""
    if name.endswith(COUNTER):
        return file.get(sources[0], own)
    parts = [file[source] for source in sources]
    scalar = next((source for source, part in zip(sources, parts, strict=True) if not part.ndim), None)
    shapes = ", ".join(f"{source} {tuple(part.shape)}" for source, part in zip(sources, parts, strict=True))
    if scalar is not None or len({part.shape[1:] for part in parts}) > 1:
        raise CheckpointError(f"shapes that do not fit together: {shapes}")
    joined, (layer, _, tensor) = torch.cat(parts), name.rpartition(".")
    if tensor == "weight" and layer in official.arranged and joined.shape == own.shape:
        joined = official.arranged[layer](joined)
    # A 1x1 convolution may be a linear layer in the file.
    if joined.shape != own.shape and (*joined.shape, 1, 1) != own.shape:
        raise CheckpointError(f"{shapes}: the model needs {tuple(own.shape)}; do data.layout and all parts fit?")
    if not joined.isfinite().all():
        raise CheckpointError(f"{sources[0]} has values that are not finite")
    joined = joined.reshape(own.shape).to(own.dtype)
    return joined.flip(1) if layer in official.bgr else joined


def _list_names(names: list[str]) -> str:
    """Join the first names for a message."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
