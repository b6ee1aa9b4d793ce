"""What a run ran on: versions, machine, state of the code."""

import json
import platform
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from facelab.files import LARGEST_TABLE, read_json, write_json
from facelab.run_folder import now
from facelab.runs.processes import slurm_job

ROOT = Path(__file__).parents[2]
"""The folder of the project: the packages, ``conf/`` and the doors."""
COMMIT = "commit.json"
"""In a copy of the code: its state when the copy was made."""
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "timm", "albumentations", "torchmetrics", "numpy")
"""Libraries whose versions are kept."""


def write_environment(path: Path) -> None:
    """Keep the environment of the first start, and with it those of the later ones."""
    with suppress(FileNotFoundError, ValueError):
        first = read_json(path, LARGEST_TABLE)
        if isinstance(first, dict) and isinstance(resumed := first.get("resumed", []), list):
            write_json(path, first | {"resumed": [*resumed, environment()]})
            return
    write_json(path, environment())


def environment() -> dict[str, Any]:
    """Gather versions, machine and state of the code; of a copy of the code, its state when the copy was made."""
    copied = ROOT / COMMIT
    return {
        "time": now(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "slurm_job": slurm_job(),
        "command": sys.argv,
        "code": str(ROOT),
        **(json.loads(copied.read_text()) if copied.is_file() else commit(Path(__file__).parent)),
    }


def commit(folder: Path) -> dict[str, Any]:
    """Read the git commit of a folder and what was changed since; null where there is none."""

    def git(*words: str) -> str | None:
        if shutil.which("git") is None:
            return None
        result = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
        return result.stdout.rstrip() if result.returncode == 0 else None

    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed_files": (git("status", "--porcelain") or "").splitlines(),
    }
