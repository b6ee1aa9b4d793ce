"""Files that are either whole or not there, and that are read within bounds."""

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facelab.files import (
    DEEPEST,
    LARGEST,
    MOST_NODES,
    expand_home,
    read_bytes,
    read_json,
    read_table,
    read_yaml,
    replacing,
    resolve_links,
)

QUICK = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
    database=None,
)


def test_the_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    """Would catch a folder that is not made, and a suffix that is lost (OpenCV goes by it)."""
    path = tmp_path / "deep" / "picture.png"
    for content in ("old", "new"):
        with replacing(path) as temporary:
            assert temporary.suffix == ".png"
            assert temporary.parent == path.parent
            temporary.write_text(content)
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_says_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    """Would catch a file that only its owner reads, and one that all read against the owner's will."""
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "status.json") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "status.json").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_a_crash_leaves_the_old_file_and_nothing_else(tmp_path: Path, fault: type[BaseException]) -> None:
    """Would catch half a file under the final name, and temporary files that pile up."""
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise fault

    with pytest.raises(fault):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """Would catch writing in place."""
    path = tmp_path / "status.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_name_that_is_a_folder_fails_cleanly(tmp_path: Path) -> None:
    """Would catch a temporary file left behind when the last step, the renaming, fails."""
    path = tmp_path / "results"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="results"), replacing(path) as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == [path]


# Places


def test_places_that_lead_nowhere_are_names_of_files(tmp_path: Path) -> None:
    """A traceback for the home of a user who is not there, and for links that lead to each other."""
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert expand_home("~nobody-of-this-name/run") == Path("~nobody-of-this-name/run")
    assert expand_home("~/run") == Path.home() / "run"
    assert resolve_links(loop / "run") == tmp_path.resolve() / "loop" / "run"
    (tmp_path / "link").symlink_to(tmp_path)
    assert resolve_links(tmp_path / "link" / "run") == tmp_path.resolve() / "run"


# Reading


def test_ordinary_files_are_read(tmp_path: Path) -> None:
    """Would catch a bound that refuses what a run writes."""
    for file in ROOT.glob("tests/recorded/**/*.yaml"):
        assert read_yaml(file) == yaml.safe_load(file.read_text())
    for file in ROOT.glob("tests/recorded/**/*.json"):
        assert read_json(file) == json.loads(file.read_text())
    plain = {"none": None, "number": -1.5, "date": "2001-01-01", "grüße": "~", "lists": [[], {}, [1, True]]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(plain, allow_unicode=True), encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == plain


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    """Would catch a reader that waits for the writer of a pipe, or reads a device to its end."""
    path = tmp_path / "config.yaml"
    {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "nothing": lambda: None,
    }[kind]()
    start = time.perf_counter()
    for read in (lambda: read_bytes(path, 9), lambda: read_json(path), lambda: read_yaml(path)):
        with pytest.raises(FileNotFoundError if kind == "nothing" else (OSError, ValueError)) as caught:
            read()
        assert isinstance(caught.value, ValueError) or str(path) in str(caught.value)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "content",
    [
        "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12)),
        "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
        "[" * 100_000,
        "- " * 100_000,
        "a: 1:" + "1:" * 400_000 + "1",
        "a: 0x" + "f" * 100_000,
        f"[{'a,' * (MOST_NODES + 1)}]",
        "x" * (LARGEST + 1),
        "? [a]\n: b",
        "!!int ''",
        "!!python/object/apply:os.getcwd []",
        "a: 2001-99-99",
        "a: b: c",
        "=",
        "\x00",
    ],
    ids=range(15),
)
def test_yaml_that_is_more_than_it_seems_is_refused(tmp_path: Path, content: str) -> None:
    """Would catch a file of a kilobyte that takes all memory, minutes, or the stack."""
    (tmp_path / "a.yaml").write_text(content)
    start = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(ValueError) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert tracemalloc.get_traced_memory()[1] < 50 * LARGEST
    tracemalloc.stop()
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 60 + "1" + "}" * 60, "9" * 10_000, "", "{", "\ud800"])
def test_odd_json_is_refused(tmp_path: Path, content: str) -> None:
    """Would catch JSON that exceeds the stack of its reader, or of whoever walks over it."""
    (tmp_path / "a.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


@QUICK
@given(st.one_of(st.binary(max_size=60), st.text("[]{}&*!:-?,a1. \n\"'|>%#x", max_size=60).map(str.encode)))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """Would catch a file whose fault shows as another exception than callers know."""
    (tmp_path / "a").write_bytes(content)
    readers: list[Any] = [read_json, read_yaml, lambda path: list(read_table(path)), lambda path: read_bytes(path, 9)]
    for read in readers:
        try:
            read(tmp_path / "a")
        except ValueError as error:
            assert str(error)


def test_torn_line_of_a_table_is_left_out(tmp_path: Path) -> None:
    """Would catch half a row taken for a whole one, and a whole one that is lost."""
    (tmp_path / "a.csv").write_text('a,b\n1,"x\ny"\n2,z')
    assert list(read_table(tmp_path / "a.csv")) == [["a", "b"], ["1", "x\ny"], ["2", "z"]]
    assert list(read_table(tmp_path / "a.csv", torn=True)) == [["a", "b"], ["1", "x\ny"]]
