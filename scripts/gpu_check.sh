#!/usr/bin/env bash
# Measure training and inference of every method on one GPU, in at most five minutes, and write one JSON file.
#
#     scripts/gpu_check.sh --output gpu_check.json       (see: python scripts/gpu_check.py --help)
#
# The machine needs Python 3.12, torch, torchvision, lightning, timm, torchmetrics and OpenCV, and no internet. The other
# packages travel in .whl/. To fill that folder (6 MB) for Python 3.12 on x86-64, where pip reaches its index:
#
#     for n in 28 27 17; do linux+=" --platform manylinux_2_${n}_x86_64"; done
#     there="-d .whl --only-binary=:all: --python-version 3.12 $linux"
#     pip download $there --no-deps 'hydra-core<1.4' 'omegaconf<2.4' albumentations==2.0.8 albucore==0.0.24 simsimd stringzilla
#     pip download $there pydantic                            # its core has to be of the same release
#     pip wheel -w .whl --no-deps antlr4-python3-runtime==4.9.3   # published as source only
#
# SECONDS_AT_MOST changes the limit. If the limit is reached, the file holds what was measured, and "complete" is false.
set -euo pipefail
cd "$(dirname "$0")/.."

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" NO_ALBUMENTATIONS_UPDATE=1
if [ -d .whl ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "${PYTHON:-python3}" -m pip install --quiet --no-index --no-deps --target "$site" .whl/*.whl
  PYTHONPATH="$PYTHONPATH:$site"
fi
timeout --kill-after=5 "${SECONDS_AT_MOST:-295}" "${PYTHON:-python3}" scripts/gpu_check.py "$@"
