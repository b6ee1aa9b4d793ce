"""Files: atomic writing, reading with limits, and listing of a folder."""

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

MAX_FILE_BYTES = 2**20
"""Maximum size in bytes of a YAML or JSON file that is read; files of a run have about 10,000."""
MAX_TABLE_BYTES = 2**26
"""Maximum size in bytes of a CSV file that is read, enough for 200,000 faces at 300 bytes each."""
MAX_DEPTH = 50
"""Maximum number of nested levels in a YAML or JSON file; the configuration of a run has about six."""
MAX_NODES = 10_000
"""Maximum number of keys and values in a YAML file; the configuration of a run has about 600."""
LONG_WORD = re.compile(r"[\w.:+-]{1000,}", re.ASCII)
"""Word in a YAML file that might be a number but is too long: parsing time grows with the square of its length."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name beside it, and rename it when the block succeeds.

    A reader never sees a partial file, and a crash leaves the old file unchanged.

    Args:
        path: path of the file; its folder is created.

    Yields:
        The temporary path to write to, with the same suffix.

    Raises:
        OSError: writing failed; the error names ``path`` and not the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(path)
    try:
        with name_in_errors(path, temporary):
            temporary.touch(exist_ok=False)  # permissions of the umask; those of tempfile exclude all but the owner
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # otherwise a power cut could leave the renamed file empty
            os.replace(temporary, path)  # noqa: PTH105  the name shows that it may replace a file
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a killed process. No other process may be writing to the folder."""
    for path in folder.glob(".*-*"):
        if re.fullmatch(r"\..+-[0-9a-f]{32}(\.\w+)?", path.name) and path.is_file():
            path.unlink()


def walk(root: Path) -> list[Path]:
    """Return the files in a folder and its subfolders, sorted, without names that begin with a dot.

    Links are followed. Each folder is visited once, under its real path if that is in ``root`` too: a link to a parent
    folder would otherwise repeat its files endlessly. A linked file is listed under each of its names.

    Raises:
        OSError: a folder cannot be read.
    """
    files: list[Path] = []
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
                files.append(child)
    return sorted(files)


def expand_home(path: str) -> Path:
    """Replace ``~`` or ``~user`` by the home folder; unchanged if there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path's own raises there


def resolve_links(path: Path) -> Path:
    """Resolve all links of a path; links that form a loop are kept."""
    return Path(os.path.realpath(path))  # Path.resolve raises for these before Python 3.13


def why_not_writable(folder: Path) -> str:
    """Return why no file can be written in a folder, which need not exist yet; empty if one can."""
    existing = folder.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return f"{existing}: {error.strerror}"


@contextmanager
def name_in_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Add the file's name to a write error, which names no file or the temporary one.

    Args:
        path: path of the file.
        temporary: path of the temporary file that is written instead.

    Raises:
        OSError: writing failed; the error names ``path``.
    """
    try:
        yield
    except OSError as error:
        if error.errno and str(error.filename or path) in (str(path), str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write a JSON file atomically; NaN and infinite numbers become null.

    Args:
        path: path of the file.
        content: mappings, lists, text and numbers.
        indent: spaces per level; None for a single line, which avoids one line per number.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def _temporary_beside(path: Path) -> Path:
    """Return a new path in the same folder with the same suffix; :func:`remove_leftovers` matches its pattern."""
    stem = os.fsdecode(os.fsencode(path.stem)[:100])  # a name may have at most 255 bytes
    return path.with_name(f".{stem}-{uuid4().hex}{path.suffix}")


def create_json(path: Path, content: Any) -> None:
    """Create a JSON file atomically; if two processes do so at once, only one succeeds.

    Raises:
        FileExistsError: the file exists.
    """
    temporary = _temporary_beside(path)
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
    """Return JSON content with null for numbers that are not finite."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_bytes(path: Path, most: int) -> bytes:
    """Read a file of unknown kind; refuse a pipe or device without waiting, and a large file without loading it.

    Args:
        path: path of the file; links are followed.
        most: largest allowed size in bytes.

    Raises:
        OSError: it cannot be opened; FileNotFoundError if it does not exist.
        ValueError: it is not a regular file, or is too large; the message does not contain the path.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a file, but a pipe or a device")
        content = file.read(most + 1) or b""
    if len(content) > most:
        raise ValueError(f"has more than {most:,} bytes")
    return content


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting."""
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for its writer


def read_text(path: Path, most: int = MAX_FILE_BYTES) -> str:
    """Read a file as UTF-8, with unchanged newlines.

    Raises:
        OSError: see :func:`read_bytes`.
        ValueError: see :func:`read_bytes`, or it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def read_table(path: Path, *, torn: bool = False, most: int = MAX_TABLE_BYTES) -> Iterator[list[str]]:
    """Yield the rows of a CSV file, including the header.

    Args:
        path: path of the file.
        torn: whether to skip a last line without a newline, which may be incomplete.
        most: maximum size in bytes.

    Raises:
        OSError: see :func:`read_bytes`.
        ValueError: see :func:`read_bytes`, or a row is broken or not UTF-8; the message contains path and line.
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


def read_json(path: Path, most: int = MAX_FILE_BYTES) -> Any:
    """Read a JSON file.

    Raises:
        OSError: see :func:`read_bytes`.
        ValueError: it is broken, too large or nested too deeply; the message is one line without the path.
    """
    return parse_json(read_text(path, most))


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: it is broken, is nested too deeply or contains an integer with too many digits.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # Python's limit of digits, whose message suggests calling a function
        raise ValueError(f"contains a whole number of over {sys.get_int_max_str_digits():,} digits") from error
    except RecursionError as error:
        raise ValueError(f"is nested over {MAX_DEPTH} levels deep") from error
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [child for node in level if isinstance(node, (dict, list)) for child in _children(node)]
    if level:
        raise ValueError(f"is nested over {MAX_DEPTH} levels deep")
    return content


def _children(node: dict[str, Any] | list[Any]) -> Any:
    """Return the values of a mapping or a list."""
    return node.values() if isinstance(node, dict) else node


def read_yaml(path: Path, most: int = MAX_FILE_BYTES) -> Any:
    """Read a YAML file of plain values, as a run writes it.

    Aliases and tags are refused: with aliases a file of some lines can expand to more values than fit into memory, and
    tags name other types.

    Raises:
        OSError: see :func:`read_bytes`.
        ValueError: it is broken, too large, nested too deeply, or contains an alias or a tag; the message is one line
            without the path.
    """
    text = read_text(path, most)
    try:
        _check_yaml(text)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, if PyYAML was built with it


def _check_yaml(text: str) -> None:
    """Check the limits of a YAML text before it is loaded.

    Raises:
        ValueError: it contains an alias, a tag or a word that is too long, or exceeds a limit.
        yaml.YAMLError: it is broken.
    """
    depth = nodes = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{line}: contains an alias, *{event.anchor}; write the value out")
        if getattr(event, "tag", None):
            raise ValueError(f"{line}: contains a tag, {event.tag}; only plain values are read")
        if depth > MAX_DEPTH:
            raise ValueError(f"{line}: is nested over {MAX_DEPTH} levels deep")
        if nodes > MAX_NODES:
            raise ValueError(f"{line}: contains over {MAX_NODES:,} keys and values")
        if isinstance(event, yaml.ScalarEvent) and LONG_WORD.fullmatch(event.value):
            raise ValueError(f"{line}: contains a word of {len(event.value):,} characters")
