"""Files that are either whole or not there."""

import os
from pathlib import Path

import pytest

from facelab.files import replacing


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
