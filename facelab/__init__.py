"""Face landmarks and face detection: data, coders, networks, losses and metrics.

Within this package only ``facelab.runs`` imports Hydra.
"""

import os

__version__ = "0.1.0"

# Set before the import of albumentations, which would otherwise check the package index for a newer release.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
MAX_PIXELS = 300_000_000
"""Largest number of pixels of a photo that is read, 0.9 GB decoded: allows the 200 megapixels of a phone, but no
decompression bomb."""
# OpenCV reads this once, when it is imported.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
