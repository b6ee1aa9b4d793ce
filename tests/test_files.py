"""Tests of replacing files atomically and of reading them within limits."""

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
    MAX_DEPTH,
    MAX_FILE_BYTES,
    MAX_NODES,
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


def test_replacing_writes_the_file_at_its_path(tmp_path: Path) -> None:
    """Would catch a folder that is not created, or a lost suffix, from which OpenCV chooses the format."""
    path = tmp_path / "deep" / "picture.png"
    for content in ("old", "new"):
        with replacing(path) as temporary:
            assert temporary.suffix == ".png"
            assert temporary.parent == path.parent
            temporary.write_text(content)
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_replacing_applies_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    """Would catch a file that only its owner may read, or that everybody may read against the umask."""
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "status.json") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "status.json").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_replacing_keeps_the_old_file_after_an_error(tmp_path: Path, fault: type[BaseException]) -> None:
    """Would catch half a file under the final name, or temporary files that accumulate."""
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


def test_replacing_keeps_the_old_file_while_writing(tmp_path: Path) -> None:
    """Would catch a file that is written in place."""
    path = tmp_path / "status.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_replacing_removes_its_temporary_file_if_the_target_is_a_folder(tmp_path: Path) -> None:
    """Would catch a temporary file that remains if the last step, the renaming, fails."""
    path = tmp_path / "results"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="results"), replacing(path) as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == [path]


# Paths


def test_at_home_and_real_accept_unknown_homes_and_link_loops(tmp_path: Path) -> None:
    """Would catch a traceback for the home of an unknown user, or for links that form a loop."""
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert expand_home("~nobody-of-this-name/run") == Path("~nobody-of-this-name/run")
    assert expand_home("~/run") == Path.home() / "run"
    assert resolve_links(loop / "run") == tmp_path.resolve() / "loop" / "run"
    (tmp_path / "link").symlink_to(tmp_path)
    assert resolve_links(tmp_path / "link" / "run") == tmp_path.resolve() / "run"


# Reading


def test_read_yaml_and_read_json_accept_files_of_a_run(tmp_path: Path) -> None:
    """Would catch a limit that refuses a file of a run."""
    for file in ROOT.glob("tests/recorded/**/*.yaml"):
        assert read_yaml(file) == yaml.safe_load(file.read_text())
    for file in ROOT.glob("tests/recorded/**/*.json"):
        assert read_json(file) == json.loads(file.read_text())
    plain = {"none": None, "number": -1.5, "date": "2001-01-01", "grüße": "~", "lists": [[], {}, [1, True]]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(plain, allow_unicode=True), encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == plain


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing"])
def test_read_bytes_refuses_special_files_without_waiting(tmp_path: Path, kind: str) -> None:
    """Would catch a reader that waits for the writer of a pipe, or that reads a device to its end."""
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
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "[" * 100_000,
        "- " * 100_000,
        "a: 1:" + "1:" * 400_000 + "1",
        "a: 0x" + "f" * 100_000,
        f"[{'a,' * (MAX_NODES + 1)}]",
        "x" * (MAX_FILE_BYTES + 1),
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
def test_read_yaml_refuses_hostile_files(tmp_path: Path, content: str) -> None:
    """Would catch a file of a kilobyte that takes all memory, minutes, or the stack."""
    (tmp_path / "a.yaml").write_text(content)
    start = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(ValueError) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert tracemalloc.get_traced_memory()[1] < 50 * MAX_FILE_BYTES
    tracemalloc.stop()
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 60 + "1" + "}" * 60, "9" * 10_000, "", "{", "\ud800"])
def test_read_json_refuses_malformed_and_nested_files(tmp_path: Path, content: str) -> None:
    """Would catch JSON that exceeds the stack of its reader or of a function that walks over it."""
    (tmp_path / "a.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


@QUICK
@given(st.one_of(st.binary(max_size=60), st.text("[]{}&*!:-?,a1. \n\"'|>%#x", max_size=60).map(str.encode)))
def test_readers_raise_only_value_error(tmp_path: Path, content: bytes) -> None:
    """Would catch a malformed file that raises another exception than callers handle."""
    (tmp_path / "a").write_bytes(content)
    readers: list[Any] = [read_json, read_yaml, lambda path: list(read_table(path)), lambda path: read_bytes(path, 9)]
    for read in readers:
        try:
            read(tmp_path / "a")
        except ValueError as error:
            assert str(error)


def test_read_table_omits_a_torn_last_line(tmp_path: Path) -> None:
    """Would catch half a row that is read as a complete one, or a complete row that is lost."""
    (tmp_path / "a.csv").write_text('a,b\n1,"x\ny"\n2,z')
    assert list(read_table(tmp_path / "a.csv")) == [["a", "b"], ["1", "x\ny"], ["2", "z"]]
    assert list(read_table(tmp_path / "a.csv", torn=True)) == [["a", "b"], ["1", "x\ny"]]
