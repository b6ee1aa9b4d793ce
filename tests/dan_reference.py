"""Reference of DAN for tests: the steps of MarekKowalski/DeepAlignmentNetwork, face by face and pixel by pixel."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

from facelab.faces.geometry import Array


def slow_similarity(points: Array, target: Array) -> Array:
    """Solve the least squares of x' = a x - b y + c, y' = b x + a y + d with numpy's general solver."""
    rows = [row for x, y in points for row in ([x, -y, 1, 0], [y, x, 0, 1])]
    a, b, c, d = np.linalg.lstsq(np.array(rows), target.ravel(), rcond=None)[0]
    return np.array([[a, -b, c], [b, a, d], [0, 0, 1]])


def slow_warp(image: Array, to_source: Array) -> Array:
    """Interpolate each pixel of an image ``(S, S)`` on its own."""
    size, result = len(image), np.zeros_like(image)
    for row in range(size):
        for column in range(size):
            x, y = np.clip((to_source @ [column, row, 1])[:2], 0, size - 2)
            i, j = int(y), int(x)
            v, u = y - i, x - j
            upper = (1 - u) * image[i, j] + u * image[i, j + 1]
            lower = (1 - u) * image[i + 1, j] + u * image[i + 1, j + 1]
            result[row, column] = (1 - v) * upper + v * lower
    return result


def slow_heatmap(points: Array, size: int, radius: int) -> Array:
    """Draw each landmark of a face ``(N, 2)`` pixel by pixel."""
    result = np.zeros((size, size))
    for x, y in np.clip(points, radius, size - 1 - radius):
        for row in range(int(y) - radius, int(y) + radius + 1):
            for column in range(int(x) - radius, int(x) + radius + 1):
                distance = math.sqrt((column - x) ** 2 + (row - y) ** 2 + 1e-6)
                result[row, column] = max(result[row, column], 1 / (1 + distance))
    return result


def lasagne_arrays(stages: int, width: int, size: int, points: int) -> dict[str, Array]:
    """Return random arrays of a network as the public code saves it, whose corrections are some pixels."""
    rng = np.random.default_rng(0)
    arrays: list[Array] = []

    def norm(channels: int) -> None:
        for low, high in ((-0.2, 0.2), (0.7, 1.3), (-0.2, 0.2), (0.7, 1.3)):  # beta, gamma, mean, inverse deviation
            arrays.append(rng.uniform(low, high, channels))

    def weight(shape: tuple[int, ...], inputs: int) -> None:
        arrays.append(rng.normal(0, math.sqrt(2 / inputs), shape))

    for stage in range(stages):
        channels = 1
        if stage > 0:
            channels = 3
            weight((4 * width, (size // 2) ** 2), 4 * width)
            arrays.append(rng.uniform(-0.2, 0.2, (size // 2) ** 2))
            norm(3)
        for factor in (1, 1, 2, 2, 4, 4, 8, 8):
            weight((factor * width, channels, 3, 3), 9 * channels)
            norm(channels := factor * width)
        weight((channels * (size // 16) ** 2, 4 * width), channels * (size // 16) ** 2)
        norm(4 * width)
        weight((4 * width, 2 * points), 4 * width)
        arrays.append(rng.normal(0, 1, 2 * points))
    named = {f"arr_{number}": array.astype(np.float32) for number, array in enumerate(arrays)}
    mean, deviation = rng.uniform(100, 140, (1, size, size)), rng.uniform(40, 60, (1, size, size))
    named |= {"meanImg": mean.astype(np.float32), "stdDevImg": deviation.astype(np.float32)}
    shape = size / 4 + size / 2 * rng.random((points, 2))
    return named | {"initLandmarks": shape, "errors": np.zeros(1), "errorsTrain": np.zeros(1)}


def public_dan(arrays: dict[str, Array], image: Array, stages: int) -> Array:
    """Run the network of the public code on grey crops ``(B, S, S)``; return the landmarks ``(B, N, 2)``."""
    shape = arrays["initLandmarks"]
    normalised = (image.astype(np.float64) - arrays["meanImg"]) / arrays["stdDevImg"].astype(np.float64)
    return np.stack([_public_face(arrays, face, shape, stages) for face in normalised])


def _public_face(arrays: dict[str, Array], face: Array, shape: Array, stages: int) -> Array:
    """Run the network on one normalised crop ``(S, S)``."""
    rest = iter([array.astype(np.float64) for name, array in arrays.items() if name.startswith("arr_")])
    correction, hidden = _public_stage(rest, face[None])
    landmarks = shape + correction
    for _ in range(stages - 1):
        matrix = slow_similarity(landmarks, shape)
        aligned = landmarks @ matrix[:2, :2].T + matrix[:2, 2]
        feature = np.maximum(hidden @ next(rest) + next(rest), 0).reshape(len(face) // 2, -1)
        feature = feature.repeat(2, axis=0).repeat(2, axis=1)
        warped = slow_warp(face, np.linalg.inv(matrix))
        inputs = _norm(np.stack([warped, slow_heatmap(aligned, len(face), 8), feature]), rest)
        correction, hidden = _public_stage(rest, inputs)
        landmarks = (aligned + correction - matrix[:2, 2]) @ np.linalg.inv(matrix[:2, :2]).T
    return landmarks


def _public_stage(rest: Iterator[Array], x: Array) -> tuple[Array, Array]:
    """Run the convolutions and dense layers of a stage on ``(C, S, S)``; return corrections and hidden vector."""
    for layer in range(8):
        kernel = np.ascontiguousarray(next(rest)[:, :, ::-1, ::-1])  # Theano's convolution turns the kernel
        x = functional.conv2d(torch.from_numpy(x)[None], torch.from_numpy(kernel), padding=1)[0].numpy()
        x = np.maximum(_norm(x, rest), 0)
        if layer % 2:
            x = x.reshape(len(x), len(x[0]) // 2, 2, -1, 2).max((2, 4))
    hidden = np.maximum(_norm(x.ravel() @ next(rest), rest), 0)
    return (hidden @ next(rest) + next(rest)).reshape(-1, 2), hidden


def _norm(x: Array, rest: Iterator[Array]) -> Array:
    """Normalise the first axis with the next four arrays."""
    beta, gamma, mean, inverse = (next(rest).reshape(-1, *[1] * (x.ndim - 1)) for _ in range(4))
    return (x - mean) * (gamma * inverse) + beta
