"""Copy of the code from which the jobs of a sweep run."""

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
"""Environment variable: path of the code copy from which a sweep runs."""
PARTS = ("conf", "hydra_plugins", *sorted(PROJECT))
"""Folders in the copy, beside the scripts."""


def run_from_copy() -> None:
    """Restart this script from a copy of the code, because a waiting job must not run later edits.

    The copies are in ``logs/code``. Each is stored once, under a hash of its files and commit. Does nothing if the
    program is not a script of the project, or already runs from a copy.
    """
    script = Path(sys.argv[0]).resolve()
    words = [number for number, word in enumerate(sys.orig_argv) if Path(word).resolve() == script]
    if CODE in os.environ or script.parent != ROOT or not words:
        return
    code = copy_code(Path("logs/code").absolute())
    os.environ[CODE] = str(code)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    flags = sys.orig_argv[1 : words[0]]
    os.execv(sys.executable, [sys.executable, *flags, str(code / script.name), *sys.argv[1:]])


def copy_code(where: Path) -> Path:
    """Copy the code into a folder of ``where`` that is named by a hash of its content, and return the folder."""
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
    except OSError:  # another sweep has just created it
        shutil.rmtree(temporary)
    return copy
