"""Files: written whole or not at all, and found below a folder."""

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name beside it and rename it when the block ends well.

    A reader never sees half a file, and a crash leaves the old one.

    Args:
        path: of the file; its folder is made.

    Yields:
        The temporary path to write to, with the same suffix.

    Raises:
        OSError: of writing, with the name of the file that is meant.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = os.fsdecode(os.fsencode(path.stem)[:100])  # a name may have 255 bytes
    temporary = path.with_name(f".{stem}-{uuid4().hex}{path.suffix}")  # as `remove_leftovers` knows it
    try:
        with naming(path, temporary):
            temporary.touch(exist_ok=False)  # open to whom the umask says; tempfile's are the owner's alone
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # else a power cut could leave the name without its content
            os.replace(temporary, path)  # noqa: PTH105  the name says that an existing file is meant
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed left under temporary names. Nobody else may be writing there."""
    for path in folder.glob(".*-*"):
        if re.fullmatch(r"\..+-[0-9a-f]{32}(\.\w+)?", path.name) and path.is_file():
            path.unlink()


def walk(root: Path) -> list[Path]:
    """Find the files in a folder and the folders in it, sorted, without those whose name begins with a dot.

    Links are followed, and each folder is visited once, by its own place if this lies in ``root`` too: a link to a
    folder above would otherwise give its files again and again. A file that is linked to is there by each of its names.

    Raises:
        OSError: a folder cannot be read.
    """
    found: list[Path] = []
    seen: set[str] = set()
    waiting, links = [root], list[Path]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        for child in sorted(folder.iterdir()):
            if child.name.startswith("."):
                continue
            if child.is_dir():
                (links if child.is_symlink() else waiting).append(child)
            elif child.is_file():
                found.append(child)
    return sorted(found)


def closed(folder: Path) -> str:
    """Say why no file can be written in a folder, which need not be there yet; empty where one can."""
    there = folder.absolute()
    try:
        while not there.exists():
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"{there}: {error.strerror}"


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an error of writing say which file was meant: that of a full disk names none, or a temporary one.

    Args:
        path: that is meant.
        temporary: that is written in its place.

    Raises:
        OSError: with the name of ``path``.
    """
    try:
        yield
    except OSError as error:
        if error.errno and str(error.filename or path) in (str(path), str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write a JSON file that is whole or not there; NaN and infinite numbers become null.

    Args:
        path: of the file.
        content: mappings, lists, text and numbers.
        indent: spaces; None for one line, where each number would have a line of its own.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
