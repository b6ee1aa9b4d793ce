"""Search of photos of any sizes, as a rule says: resized, flipped, and with one suppression for all searches."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from facelab.faces.batch import Detections
from facelab.faces.detections import (
    Candidates,
    DetectionRule,
    concatenate,
    first_of_each,
    order,
    resize,
    suppress,
    vote,
)
from facelab.faces.geometry import box_to_image, flip_image, image_box, transform_points
from facelab.faces.layouts import FIVE5

SearchOfOneSize: TypeAlias = Callable[[Tensor], tuple[Candidates, Tensor]]
"""Function of images ``(B, 3, H, W)`` uint8 that returns candidates in pixels of the image, before any suppression, and
the images ``(I,)`` in which a limit left out some."""


def search_photos(search: SearchOfOneSize, image: Tensor, size: Tensor, rule: DetectionRule) -> Detections:
    """Find the faces in a batch of photos.

    Photos of one size are searched together, without the padding of the batch. The result is therefore that of each
    photo alone.

    Args:
        search: finds candidates in images of one size.
        image: ``(B, 3, H, W)`` uint8 RGB, padded at the right and below.
        size: ``(B, 2)`` height and width of each photo in ``image``; 0 for a photo that could not be read.
        rule: how the photos are resized, and which candidates remain.
    """
    cut_photos = torch.zeros(len(image), dtype=torch.bool, device=image.device)
    parts = [Candidates(*(torch.empty(0, *shape, device=image.device) for shape in ((4,), (), (5, 2), ())))]
    parts[0] = parts[0]._replace(photo=parts[0].photo.long())
    for height, width in sorted({(int(height), int(width)) for height, width in size.tolist()}):
        if height * width == 0:  # the photo could not be read
            continue
        rows = (size == size.new_tensor([height, width])).all(dim=1).nonzero().squeeze(1)
        same = image[rows, :, :height, :width]
        for new_height, new_width, flipped in rule.searches(height, width):
            found, cut = _search_resized(search, same, new_height, new_width, flipped=flipped)
            cut_photos[rows[cut]] = True
            parts.append(found._replace(photo=rows[found.photo]))
    found = concatenate(parts)
    found = found.take(order(found.photo, found.scores))
    found = (vote if rule.votes else suppress)(found, rule)
    found = found.take(order(found.photo, found.scores))
    kept = first_of_each(found.photo, rule.most)
    cut_photos[found.photo[~kept]] = True
    return Detections(*found.take(kept), cut_photos)


def _search_resized(
    search: SearchOfOneSize, image: Tensor, height: int, width: int, *, flipped: bool
) -> tuple[Candidates, Tensor]:
    """Search resized images; return the candidates in pixels of ``image``."""
    resized = resize(image, height, width)
    found, cut = search(resized.flip(-1) if flipped else resized)
    back = box_to_image(image_box(width, height), image.shape[-1], image.shape[-2])
    if flipped:
        back = back @ flip_image(width)
    if (height, width) == image.shape[-2:] and not flipped:
        return found, cut
    matrix = torch.as_tensor(back, dtype=torch.float32, device=image.device)
    corners = transform_points(matrix, found.boxes.unflatten(-1, (2, 2)))
    points = transform_points(matrix, found.points)
    if flipped:
        corners = torch.stack([corners.amin(dim=-2), corners.amax(dim=-2)], dim=-2)
        points = points[:, list(FIVE5.flip)]
    return found._replace(boxes=corners.flatten(-2), points=points), cut
