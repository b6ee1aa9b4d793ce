"""Face landmarks and face detection: data, coders, networks, losses and metrics.

Within this package only ``facelab.runs`` imports Hydra.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facelab.api import Detector, Landmarker, load

__version__ = "0.1.0"

# Set before the import of albumentations, which would otherwise check the package index for a newer release.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
MAX_PIXELS = 300_000_000
"""Largest number of pixels of a photo that is read, 0.9 GB decoded: allows the 200 megapixels of a phone, but no
decompression bomb."""
# OpenCV reads this once, when it is imported.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
__all__ = ["MAX_PIXELS", "Detector", "Landmarker", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import :func:`load` and its classes when they are used: importing torch takes seconds."""
    if name in ("Detector", "Landmarker", "load"):
        from facelab import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the names for the completion of a notebook, also those that are imported later."""
    return sorted({*globals(), *__all__})
