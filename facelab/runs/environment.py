"""Environment of a run: versions, machine and state of the code."""

import json
import platform
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from facelab.files import MAX_TABLE_BYTES, read_json, write_json
from facelab.run_folder import now
from facelab.runs.processes import slurm_job

ROOT = Path(__file__).parents[2]
"""Folder of the project: the packages, ``conf/`` and the scripts."""
COMMIT = "commit.json"
"""Name of a file in a copy of the code: the git state of the original at the time of copying."""
PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "timm",
    "albumentations",
    "opencv-python-headless",
    "torchmetrics",
    "numpy",
)
"""Libraries whose versions are recorded; with OpenCV 4.13, crops differ by up to 4 grey levels from those of 5.0."""


def write_environment(path: Path) -> None:
    """Write the environment of the first start of a run, or append that of a resumed one."""
    with suppress(FileNotFoundError, ValueError):
        first = read_json(path, MAX_TABLE_BYTES)
        if isinstance(first, dict) and isinstance(resumed := first.get("resumed", []), list):
            write_json(path, first | {"resumed": [*resumed, environment()]})
            return
    write_json(path, environment())


def environment() -> dict[str, Any]:
    """Return versions, machine and git state; for a copy of the code, the git state at the time of copying."""
    copied = ROOT / COMMIT
    return {
        "time": now(),
        "python": platform.python_version(),
        "packages": versions(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "slurm_job": slurm_job(),
        "command": sys.argv,
        "code": str(ROOT),
        **(json.loads(copied.read_text()) if copied.is_file() else commit(Path(__file__).parent)),
    }


@cache
def versions() -> dict[str, str]:
    """Return the installed versions of :data:`PACKAGES`; reading them takes longer than all else here."""
    return {name: version(name) for name in PACKAGES}


def commit(folder: Path) -> dict[str, Any]:
    """Return the git commit of a folder and the files changed since; without a repository, None and no files."""

    def git(*words: str) -> str | None:
        """Run git and return its output; None if it fails or is not installed."""
        if shutil.which("git") is None:
            return None
        result = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
        return result.stdout.rstrip() if result.returncode == 0 else None

    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed_files": (git("status", "--porcelain") or "").splitlines(),
    }
