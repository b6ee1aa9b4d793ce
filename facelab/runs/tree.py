"""Tree of a configuration: places of its values, and faults at these places."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

UNKNOWN = object()
"""Mark of a value that cannot be read; the reason is reported as a separate fault."""
Place = tuple[str | int, ...]
"""Keys and list indices from the root."""


class Fault(str):
    """Fault of a configuration, on one line: its place, a colon and the problem.

    Attributes:
        place: dotted key.
    """

    place: str

    def __new__(cls, place: str, message: str) -> "Fault":
        """Join place and message."""
        fault = super().__new__(cls, f"{place}: {message}")
        fault.place = place
        return fault


def fault_at(place: Place, key: Any, message: str) -> Fault:
    """Make a fault of a key of a node."""
    return Fault(show((*place, key)), message)


def show(place: Place) -> str:
    """Write a place as it is typed: ``a.b[0]``."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return text.lstrip(".")


def dotted(place: Place) -> str:
    """Write a place with dots only: ``a.b.0``."""
    return ".".join(map(str, place))


def keys_of(node: DictConfig | ListConfig) -> list[Any]:
    """List the keys of a mapping or the indices of a list."""
    return list(range(len(node))) if isinstance(node, ListConfig) else list(node.keys())


def read(node: DictConfig | ListConfig, key: Any) -> Any:
    """Return the value with its interpolation resolved, or UNKNOWN."""
    try:
        return node[key]
    except OmegaConfBaseException:
        return UNKNOWN


def containers(node: DictConfig | ListConfig, place: Place) -> Iterator[tuple[Place, DictConfig | ListConfig]]:
    """Yield every mapping and list of the tree itself with its place; interpolations are not followed."""
    yield place, node
    for key in keys_of(node):
        value = UNKNOWN if OmegaConf.is_interpolation(node, key) else read(node, key)
        if isinstance(value, DictConfig | ListConfig):
            yield from containers(value, (*place, key))


def is_partial(node: DictConfig) -> bool:
    """Return whether a node is a part that its owner completes."""
    return "_partial_" in node.keys() and read(node, "_partial_") is True  # noqa: SIM118 (`in node` is slower)
