"""Face landmarks and face detection: data, coders, networks, losses and metrics.

Of this package only ``facelab.runs`` knows Hydra.
"""

import os

__version__ = "0.1.0"

# albumentations asks the package index for a newer release while it is imported; this must be set before.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
MAX_PIXELS = 300_000_000
"""Most pixels of a photo that is read, 0.9 GB decoded: a phone's 200 megapixels, and no bomb."""
# OpenCV reads this once, when it is imported.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
