"""A copy of the code, from which the jobs of a sweep run."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

from facelab.files import write_json
from facelab.runs.environment import COMMIT, ROOT, commit
from facelab.runs.targets import PROJECT

CODE = "FACELAB_CODE"
"""Environment variable: the copy of the code that a sweep runs from."""
PARTS = ("conf", "hydra_plugins", *sorted(PROJECT))
"""Folders that a run is made of, beside the doors."""


def run_from_copy() -> None:
    """Start this door again from a copy of the code, so that a job that waited runs what was there when it was typed.

    The copies lie in ``logs/code``, each once, named by a hash of its files and of the commit. Does nothing where the
    program is not a door of the project, or the copy itself.
    """
    door = Path(sys.argv[0]).resolve()
    words = [number for number, word in enumerate(sys.orig_argv) if Path(word).resolve() == door]
    if CODE in os.environ or door.parent != ROOT or not words:
        return
    code = copy_code(Path("logs/code").absolute())
    os.environ[CODE] = str(code)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    flags = sys.orig_argv[1 : words[0]]
    os.execv(sys.executable, [sys.executable, *flags, str(code / door.name), *sys.argv[1:]])


def copy_code(where: Path) -> Path:
    """Copy the code into a folder of ``where`` that is named by its content."""
    files = sorted(
        [*ROOT.glob("*.py"), *(path for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file())]
    )
    files = [path for path in files if "__pycache__" not in path.parts]
    state: dict[str, Any] = commit(ROOT)
    digest = hashlib.sha256(json.dumps(state).encode())
    for path in files:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    copy = where / digest.hexdigest()[:16]
    if copy.is_dir():
        return copy
    temporary = where / f".{copy.name}-{uuid4().hex}"
    for path in files:
        target = temporary / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    write_json(temporary / COMMIT, state)
    try:
        temporary.rename(copy)
    except OSError:  # another sweep has just made it
        shutil.rmtree(temporary)
    return copy
