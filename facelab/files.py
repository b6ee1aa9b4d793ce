"""Files: written whole or not at all, read within bounds, and found below a folder."""

import csv
import io
import json
import math
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

LARGEST = 2**20
"""Bytes of a YAML or JSON file that is read; those that a run writes have some ten thousand."""
LARGEST_TABLE = 2**26
"""Bytes of a CSV file that is read: for each of 200,000 faces 300, as a test writes them."""
DEEPEST = 50
"""Levels of mappings and lists in a YAML or JSON file; the configuration of a run has about six."""
MOST_NODES = 10_000
"""Keys and values in a YAML file; the configuration of a run has about 600."""
LONG_WORD = re.compile(r"[\w.:+-]{1000,}", re.ASCII)
"""A word in a YAML file that might be a number and is too long for one: the time to read it grows with the square."""


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


def at_home(path: str) -> Path:
    """Put the home of a user in the place of ``~``; where there is no such user, it stays the name of a file."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path's own raises there


def real(path: Path) -> Path:
    """Follow all links of a path; those that lead to each other are left as they are."""
    return Path(os.path.realpath(path))  # Path.resolve raises for these before Python 3.13


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


def create_json(path: Path, content: Any) -> None:
    """Write a JSON file that was not there, whole; of two processes that do so at once, one succeeds.

    Raises:
        FileExistsError: the file is there.
    """
    temporary = path.with_name(f".{path.stem}-{uuid4().hex}{path.suffix}")
    try:
        write_json(temporary, content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            path.touch(exist_ok=False)
            write_json(path, content)
    finally:
        temporary.unlink(missing_ok=True)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_bytes(path: Path, most: int) -> bytes:
    """Read a file that may be anything: a pipe or a device is refused without waiting, a large file without its memory.

    Args:
        path: of the file; links are followed.
        most: bytes that it may have.

    Raises:
        OSError: it cannot be opened; FileNotFoundError where it is not there.
        ValueError: it is no file, or a larger one, without the path.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is no file, but a pipe or a device")
        content = file.read(most + 1) or b""
    if len(content) > most:
        raise ValueError(f"has more than {most:,} bytes")
    return content


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for its writer


def read_text(path: Path, most: int = LARGEST) -> str:
    """Read a file as UTF-8, with newlines as they are.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError: as :func:`read_bytes`, or it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def read_table(path: Path, *, torn: bool = False, most: int = LARGEST_TABLE) -> Iterator[list[str]]:
    """Read the rows of a CSV file, the heading among them.

    Args:
        path: of the file.
        torn: leave out a last line without its end, which may just be being written.
        most: bytes that it may have.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError: as :func:`read_bytes`, or a row is broken or not UTF-8, with the path and the line.
    """
    try:
        content = read_bytes(path, most)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    whole = content[: content.rfind(b"\n") + 1] if torn else content
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(whole), encoding="utf-8", newline=""))
    try:
        yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}:{rows.line_num + 1}: {error}") from error


def read_json(path: Path, most: int = LARGEST) -> Any:
    """Read a JSON file.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError: it is broken, too large or nested too deeply, in one line without the path.
    """
    return parse_json(read_text(path, most))


def parse_json(text: str) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is broken or nested too deeply.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # of Python's own bound, whose text names a function to call
        raise ValueError(f"holds a whole number of over {sys.get_int_max_str_digits():,} digits") from error
    except RecursionError as error:
        raise ValueError(f"is nested over {DEEPEST} levels deep") from error
    level = [content]
    for _ in range(DEEPEST + 1):
        level = [child for node in level if isinstance(node, (dict, list)) for child in _children(node)]
    if level:
        raise ValueError(f"is nested over {DEEPEST} levels deep")
    return content


def _children(node: dict[str, Any] | list[Any]) -> Any:
    return node.values() if isinstance(node, dict) else node


def read_yaml(path: Path, most: int = LARGEST) -> Any:
    """Read a YAML file that holds plain values, as a run writes it.

    Aliases and tags are refused: with aliases a file of some lines stands for more values than fit into memory, and
    tags name other types.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError: it is broken, too large, too deep or holds one of these, in one line without the path.
    """
    text = read_text(path, most)
    try:
        _check_yaml(text)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML was built with it


def _check_yaml(text: str) -> None:
    """Go over a YAML text before anything is made from it.

    Raises:
        ValueError: it would make more of itself than it is.
        yaml.YAMLError: it is broken.
    """
    depth = nodes = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{line}: holds an alias, *{event.anchor}; write the value out")
        if getattr(event, "tag", None):
            raise ValueError(f"{line}: holds a tag, {event.tag}; plain values are read alone")
        if depth > DEEPEST:
            raise ValueError(f"{line}: is nested over {DEEPEST} levels deep")
        if nodes > MOST_NODES:
            raise ValueError(f"{line}: holds over {MOST_NODES:,} keys and values")
        if isinstance(event, yaml.ScalarEvent) and LONG_WORD.fullmatch(event.value):
            raise ValueError(f"{line}: holds a word of {len(event.value):,} characters")
