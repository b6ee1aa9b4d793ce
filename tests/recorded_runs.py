"""Paths of the recorded runs in ``recorded/`` and input crops of their networks."""

import torch
from conftest import ROOT
from omegaconf import OmegaConf

RECORDED = ROOT / "tests" / "recorded"
PATHS = OmegaConf.create(
    {"data": "elsewhere", "cache": "elsewhere", "run": "now", "name": "x", "group": "g", "id": "i", "tags": []}
)


def crops() -> torch.Tensor:
    """Return two crops of 64 px, ``(2, 3, 64, 64)`` uint8, equal in every version of torch."""
    numbers = torch.arange(2 * 3 * 64 * 64, dtype=torch.int64)
    return (numbers.pow(2) * 7 // 1000 % 256).to(torch.uint8).view(2, 3, 64, 64)
