"""Files of facenet-pytorch's weights of MTCNN, with values by a formula."""

import torch
from torch import Tensor

LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "pnet": {"conv1": (10, 3, 3, 3), "conv2": (16, 10, 3, 3), "conv3": (32, 16, 3, 3)}
    | {"conv4_1": (2, 32, 1, 1), "conv4_2": (4, 32, 1, 1)}
    | {"prelu1": (10,), "prelu2": (16,), "prelu3": (32,)},
    "rnet": {"conv1": (28, 3, 3, 3), "conv2": (48, 28, 3, 3), "conv3": (64, 48, 2, 2), "dense4": (128, 576)}
    | {"dense5_1": (2, 128), "dense5_2": (4, 128)}
    | {"prelu1": (28,), "prelu2": (48,), "prelu3": (64,), "prelu4": (128,)},
    "onet": {"conv1": (32, 3, 3, 3), "conv2": (64, 32, 3, 3), "conv3": (64, 64, 3, 3), "conv4": (128, 64, 2, 2)}
    | {"dense5": (256, 1152), "dense6_1": (2, 256), "dense6_2": (4, 256), "dense6_3": (10, 256)}
    | {"prelu1": (32,), "prelu2": (64,), "prelu3": (64,), "prelu4": (128,), "prelu5": (256,)},
}
"""Shapes of the weights of facenet-pytorch."""


def published(name: str) -> dict[str, Tensor]:
    """Return weights by a formula under the names of facenet-pytorch."""
    file = {}
    for layer, shape in LAYERS[name].items():
        for kind in ("weight", "bias")[: 1 + ("prelu" not in layer)]:
            of_kind = shape if kind == "weight" else shape[:1]
            index = torch.arange(torch.Size(of_kind).numel(), dtype=torch.float64) + len(file)
            spread = (2 / torch.Size(of_kind[1:]).numel()) ** 0.5 if len(of_kind) > 1 else 0.25
            file[f"{name}.{layer}.{kind}"] = (torch.sin(index * index * 0.37) * spread).reshape(of_kind)
    return file
