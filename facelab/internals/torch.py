"""Undocumented parts of torch 2.15 that the project uses. Tested by ``test_internals.py``."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operands(TorchDispatchMode):
    """Context that records the ``id`` of every tensor that an operator reads."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the operands and call the operator."""
        kwargs = kwargs or {}
        self.ids |= {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        return func(*args, **kwargs)
