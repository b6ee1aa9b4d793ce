"""Face landmarks and face detection: data, coders, networks, losses and metrics.

Of this package only ``facelab.runs`` knows Hydra.
"""

import os

# albumentations asks the package index for a newer release while it is imported; this must be set before.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
