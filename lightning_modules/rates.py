"""Learning rates of the parts of a network, parts that are not trained, and the rise of the rates at the start."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from facelab.bounds import Amount, Positive, Text
from facelab.errors import ConfigError


class Rates:
    """Learning rates of the parameters of a module, relative to that of the optimizer and its schedule.

    A pattern is the name of a parameter or of a module above it, with the wildcards of :mod:`fnmatch`: ``backbone``,
    ``stages.0`` and ``*.bias``.

    Args:
        factors: factor on the learning rate by pattern; the first pattern that matches a parameter applies. None for
            no factors.
        freeze: patterns of the parameters that are not trained. A part of which no parameter is trained also stays in
            evaluation mode: its batch normalisations keep their statistics, and it uses no dropout.
        warmup_epochs: number of epochs, not necessarily whole, in which the learning rates rise linearly to their
            values, by equal amounts at each optimizer step.
    """

    def __init__(self, factors: Mapping[str, Positive] | None, freeze: Sequence[Text], warmup_epochs: Amount) -> None:
        self.factors, self.frozen, self.warmup_epochs = factors or {}, freeze, warmup_epochs

    def freeze(self, module: nn.Module) -> None:
        """Freeze the parameters of a module, before a strategy wraps it.

        Raises:
            ConfigError: a pattern matches no parameter, or all parameters would be frozen.
        """
        parameters = dict(module.named_parameters())
        for pattern in self.frozen:
            for name in _matches(pattern, parameters, "freeze"):
                parameters[name].requires_grad_(False)
        if self.frozen and not any(parameter.requires_grad for parameter in parameters.values()):
            raise ConfigError("rates.freeze", f"={list(self.frozen)}: nothing would be trained", mounted=True)
        self.set_evaluation_mode(module)

    def set_evaluation_mode(self, module: nn.Module) -> None:
        """Set the parts of a module of which no parameter is trained to evaluation mode."""
        for part in module.children() if self.frozen else ():
            parameters = list(part.parameters())
            if any(parameter.requires_grad for parameter in parameters):
                self.set_evaluation_mode(part)
            elif parameters:
                part.eval()

    def build_optimizer(self, build: Any, module: nn.Module) -> Optimizer:
        """Build the optimizer of the parameters that are trained, with one group for each factor.

        Args:
            build: function of parameters or groups that returns the optimizer.
            module: module of the parameters.

        Raises:
            ConfigError: a pattern matches no trained parameter, or only those of earlier patterns.
        """
        left = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        if not self.factors:
            return build(left.values())
        groups = []
        for pattern, factor in self.factors.items():
            matched = [left.pop(name) for name in _matches(pattern, left, "factors")]
            groups.append({"params": matched, "name": pattern, "factor": factor})
        if left:
            groups.append({"params": list(left.values()), "name": "rest", "factor": 1.0})
        optimizer: Optimizer = build(groups)
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("factor")
        return optimizer

    @contextmanager
    def warmed_up(self, optimizer: Optimizer, step: int, epoch_steps: int) -> Iterator[None]:
        """Lower the learning rates of an optimizer for one step, if it is one of the warm-up.

        The schedule does not notice the warm-up, so any can follow it.

        Args:
            optimizer: the optimizer.
            step: number of optimizer steps before this one.
            epoch_steps: number of optimizer steps in an epoch.
        """
        factor = min(1.0, (step + 1) / max(1.0, self.warmup_epochs * epoch_steps))
        rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        try:
            yield
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


UNIFORM = Rates(factors=None, freeze=(), warmup_epochs=0)
"""Rates that are equal for all parameters from the first step."""


def _matches(pattern: str, names: Iterable[str], argument: str) -> list[str]:
    """Return the names that a pattern matches.

    Raises:
        ConfigError: it matches none; the message names the parts of the module or the nearest ones.
    """
    names = list(names)
    if matched := [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]:
        return matched
    parts = dict.fromkeys(
        ".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)
    )
    nearest = difflib.get_close_matches(pattern, parts, n=3) or [part for part in parts if "." not in part]
    problem = f": `{pattern}` matches no parameter that is left; there are {', '.join(nearest)}"
    raise ConfigError(f"rates.{argument}", problem, mounted=True)
