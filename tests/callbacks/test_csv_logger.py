"""Tests of the CSV table of metrics and of its rewind when a run resumes."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest

from callbacks.csv_logger import AppendingCSVLogger
from facelab.errors import RunError
from facelab.runs.resume import _rewind, curves_until


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def logged(path: Path, *each: tuple[int, dict[str, float]]) -> Path:
    """Log these steps to a file, and return its path."""
    table = AppendingCSVLogger(str(path))
    for step, metrics in each:
        table.log_metrics(metrics, step)
    return path


def test_csv_logger_writes_each_row_immediately(tmp_path: Path) -> None:
    """Would catch up to a hundred rows lost with a killed run, as with Lightning's own logger."""
    table = AppendingCSVLogger(str(tmp_path / "deep" / "metrics.csv"))
    for step in range(3):
        table.log_metrics({"epoch": 0, "train/loss": step / 3}, step)
        assert (tmp_path / "deep" / "metrics.csv").read_text().count("\n") == step + 2
    assert (tmp_path / "deep" / "metrics.csv").read_text() == (
        f"epoch,step,train/loss\n0,0,0.0\n0,1,{1 / 3}\n0,2,{2 / 3}\n"
    )


def test_csv_logger_adds_columns(tmp_path: Path) -> None:
    """Would catch values in the wrong column, lost earlier rows, or half a file while a column is added."""
    path = logged(tmp_path / "metrics.csv", (0, {"a": 1.0}), (1, {"b": 2.0}), (2, {"a": 3.0}))
    assert path.read_text() == "epoch,step,a,b\n,0,1.0,\n,1,,2.0\n,2,3.0,\n"
    assert list(tmp_path.iterdir()) == [path]


def test_csv_logger_appends_to_an_existing_table(tmp_path: Path) -> None:
    """Would catch a resumed run that restarts its table or writes the columns in another order."""
    path = logged(tmp_path / "metrics.csv", (0, {"a": 1.0, "b": 2.0}))
    inode = path.stat().st_ino
    logged(path, (1, {"b": 4.0, "a": 3.0}), (2, {"b": 5.0}))
    assert path.read_text() == "epoch,step,a,b\n,0,1.0,2.0\n,1,3.0,4.0\n,2,,5.0\n"
    table = AppendingCSVLogger(str(path))
    table.log_metrics({"a": 6.0}, 3)
    inode = path.stat().st_ino
    table.log_metrics({"a": 7.0}, 4)
    assert path.stat().st_ino == inode, "the whole table is rewritten at each row"


def test_csv_logger_quotes_column_names(tmp_path: Path) -> None:
    """Would catch a name with a comma that is read as two."""
    path = logged(tmp_path / "metrics.csv", (0, {'a, "b"': 1.0}))
    logged(path, (1, {'a, "b"': 2.0}))
    assert [row['a, "b"'] for row in rows(path)] == ["1.0", "2.0"]


def test_csv_logger_raises_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch rows that are lost without a message."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    table = AppendingCSVLogger(str(tmp_path / "metrics.csv"))
    table.log_metrics({"a": 1.0}, 0)
    table.path = Path("/dev/full")
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    with pytest.raises(OSError, match="No space left"):
        table.log_metrics({"a": 2.0}, 1)


@pytest.mark.parametrize("torn", ["", ",2,3", ",2", ",2,3.0,4.0"])
@pytest.mark.parametrize("step", range(5))
def test_rewind_removes_later_and_torn_rows(step: int, torn: str, tmp_path: Path) -> None:
    """Would catch steps that are in the table twice or not at all, and half a row left by a crash."""
    path = logged(tmp_path / "metrics.csv", *((each, {"a": each / 2}) for each in range(3)))
    path.write_text(path.read_text() + torn)
    _rewind(path, step)
    assert path.exists() == (step > 0), "a header of metrics that the resumed run may lack"
    logged(path, (3, {"a": 9.0}))
    assert [row["step"] for row in rows(path)] == [*(str(each) for each in range(3) if each < step), "3"]
    assert rows(path)[-1] == {"epoch": "", "step": "3", "a": "9.0"}
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv"}


@pytest.mark.parametrize("content", ["", "epoch,step,a", "epoch,step,a\n", "epoch,step,a\n,0", "epoch,st"])
def test_rewind_accepts_an_almost_empty_table(content: str, tmp_path: Path) -> None:
    """Would catch a crash at the first row after which the run cannot be resumed."""
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    _rewind(path, 3)
    logged(path, (3, {"a": 1.0}))
    assert path.read_text() == "epoch,step,a\n,3,1.0\n"


@pytest.mark.parametrize(
    "content", [b"epoch,val\n0,1\n", b"step,a\nx,1\n", b"step,a\n1\n", b"step,a\n1,\xff\n", None, 2**40]
)
def test_curves_until_refuses_a_file_that_is_no_table(content: bytes | int | None, tmp_path: Path) -> None:
    """Would catch a traceback for a foreign file, or a sparse file that fills the memory."""
    path = tmp_path / "metrics.csv"
    if content is None:
        path.mkdir()
    elif isinstance(content, int):
        path.touch()
        os.truncate(path, content)
    else:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"metrics\.csv is not a table of the run's metrics .* move it away"):
        curves_until(path, 3)


def test_rewind_accepts_a_missing_table(tmp_path: Path) -> None:
    """Would catch a run with logger=none that cannot be resumed."""
    _rewind(tmp_path / "metrics.csv", 3)
    assert os.listdir(tmp_path) == []  # noqa: PTH208
