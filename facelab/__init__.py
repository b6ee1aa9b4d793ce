"""Face landmarks and face detection: data, coders, networks, losses and metrics.

Nothing in this package knows Lightning's Trainer or Hydra but what serves the doors: ``facelab.runs``,
``facelab.check`` and ``facelab.argv``.
"""

import os

# albumentations asks the package index for a newer release while it is imported; this must be set before.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
