"""Tests of the W&B logger and its charts, read from the run's files without an account."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import small
from conftest import open_door
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.charts import charts
from callbacks.wandb_logger import ERROR_HEADING, TolerantWandbLogger
from facelab.faces.layouts import FIVE5, IBUG68
from facelab.metrics.face_table import FaceTable, nme_per_face, read_faces
from facelab.metrics.landmarks import auc, ced

EPOCHS = 3
"""Epochs of the run that the tests share."""


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def inspect(folder: Path, *flags: str) -> list[Any]:
    """Return the output of `wandb leet inspect` for a W&B run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(text)] if "--summary" in flags else [json.loads(record) for record in text.splitlines()]


@pytest.fixture(scope="module")
def logged(trained: Path) -> Path:
    """Return the folder of the W&B run."""
    (folder,) = (trained / "wandb").glob("offline-run-*")
    return folder


@pytest.fixture(scope="module")
def summary(logged: Path) -> dict[str, Any]:
    return inspect(logged, "--summary")[0]


@pytest.fixture(scope="module")
def records(logged: Path) -> list[dict[str, Any]]:
    return inspect(logged)


def history(records: list[dict[str, Any]], name: str) -> list[Any]:
    """Return every logged value of a name, in order."""
    items = (record["history"]["item"] for record in records if record["type"] == "history")
    return [item[name] for item in items if name in item]


def metric_names(trained: Path, role: str) -> set[str]:
    """Return the metric_names of the metrics of a role, with its prefix."""
    return {f"{role}/{name}" for name in load(trained / "metrics.json")["metrics"]}


def rows(logged: Path, records: list[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """Return the rows of a table that was logged once."""
    (path,) = history(records, f"{name}.path")
    table = load(logged / "files" / path)
    return (dict(zip(table["columns"], row, strict=True)) for row in table["data"])


def test_wandb_summary_contains_every_metric(
    trained: Path, summary: dict[str, Any], records: list[dict[str, Any]]
) -> None:
    """Would catch a metric missing in W&B, or replaced by a picture of the same name."""
    values = summary["summary"]
    assert values.keys() >= metric_names(trained, "val") | metric_names(trained, "test")
    for name, value in load(trained / "metrics.json")["metrics"].items():
        assert values[f"test/{name}"] == ("NaN" if value is None else pytest.approx(value, rel=1e-5)), name
    for name in metric_names(trained, "val"):
        assert len(history(records, name)) == EPOCHS, name


def test_wandb_run_has_config_tags_and_group(
    trained: Path, summary: dict[str, Any], records: list[dict[str, Any]]
) -> None:
    """Would catch runs of one sweep that cannot be grouped, filtered or distinguished by their overrides."""
    config = OmegaConf.to_container(OmegaConf.load(trained / "config.yaml"))
    assert {key: value for key, value in summary["config"].items() if key != "_wandb"} == config
    (run,) = (record["run"] for record in records if record["type"] == "run")
    assert run["tags"] == ["pipnet", "synthetic68", "test_resnet"]
    assert (run["run_group"], run["job_type"]) == ("now", "train")
    assert run["display_name"] == "pipnet-test_resnet-synthetic68-s1"
    assert run["run_id"] == OmegaConf.load(trained / "config.yaml").paths.id
    assert (summary["state"], summary["exit_code"]) == ("finished", 0)


def test_charts_of_subsets_match_the_results(trained: Path, logged: Path, records: list[dict[str, Any]]) -> None:
    """Would catch a bar of another bucket than its label names, without its number of faces, or missing."""
    results = load(trained / "metrics.json")
    drawn = set()
    for kind in ("nme_box_yaw", "nme_ioc_tag", "nme_ioc_region", "nme_box_size"):
        for row in rows(logged, records, f"test/{kind}_table"):
            name = f"{kind}_{row['part']}"
            value = results["metrics"][name]
            assert row[ERROR_HEADING] == (None if value is None else pytest.approx(100 * value, rel=1e-6)), name
            assert row["faces"] == results["counts"][name]
            drawn.add(name)
    of_all_faces = {"nme_ioc", "nme_ipd", "nme_box", "nme_diag", "nme_box_yaw_mean"}
    assert drawn == results["counts"].keys() - of_all_faces
    assert charts_of(records) == {f"test/{kind}" for kind in ("nme_box_yaw", "nme_ioc_tag", "nme_ioc_region")} | {
        "test/nme_box_size",
        "test/ced",
    }


def charts_of(records: list[dict[str, Any]]) -> set[str]:
    """Return the names of the charts that W&B draws from tables."""
    keys = {key for record in records if record["type"] == "config" for key in record["config"]["update"]}
    return {key.removeprefix("_wandb.visualize.") for key in keys if key.startswith("_wandb.visualize.")}


def test_ced_chart_matches_the_results(trained: Path, logged: Path, records: list[dict[str, Any]]) -> None:
    """Would catch a curve of other faces than the results, or in other units than its axis."""
    faces = read_faces(trained / "faces.csv")
    for row in rows(logged, records, "test/ced_table"):
        share = ced(faces[f"nme_{row['lineKey']}"], np.array([row["step"] / 100]))
        assert row["lineVal"] == pytest.approx(100 * share[0])


def test_worst_faces_table_matches_the_results(trained: Path, logged: Path, records: list[dict[str, Any]]) -> None:
    """Would catch a name beside another face's picture, or pose and tags of another row."""
    faces = read_faces(trained / "faces.csv")
    order = np.argsort(-faces["nme_box"])
    worst = list(rows(logged, records, "test/worst_faces_table"))
    assert [row["photo"] for row in worst] == faces["photo"][order].tolist()
    assert [row[ERROR_HEADING] for row in worst] == pytest.approx((100 * faces["nme_box"][order]).tolist())
    for angle in ("yaw", "pitch", "roll"):
        assert [row[angle] for row in worst] == pytest.approx(faces[angle][order].tolist(), rel=1e-5)
    tags = [name for name in faces if name.startswith("tag_")]
    for row, face in zip(worst, order, strict=True):
        assert row["tags"] == ", ".join(tag.removeprefix("tag_") for tag in tags if faces[tag][face])
    contents = [record["artifact"]["manifest"]["contents"] for record in records if record["type"] == "artifact"]
    pictures = [file for files in contents for file in files if file["path"].startswith("media/images/")]
    assert len(pictures) == len(worst) == 8
    for file in pictures:
        assert Path(file["local_path"]).is_relative_to(logged), "stored outside of the run, in the user's home"
        assert Path(file["local_path"]).is_file()


def test_face_grid_is_logged_per_epoch(records: list[dict[str, Any]]) -> None:
    """Would catch pictures without the slider over the epochs."""
    items = [r["history"]["item"] for r in records if "val/face_grid.filenames" in r.get("history", {}).get("item", {})]
    steps = [item["trainer/global_step"] for item in items]
    assert len(items) == EPOCHS and steps == sorted(set(steps))


def test_csv_and_tensorboard_contain_every_metric(trained: Path) -> None:
    """Would catch a number that is missing in one of the loggers."""
    wanted = metric_names(trained, "val") | metric_names(trained, "test")
    with (trained / "metrics.csv").open() as file:
        assert set(next(csv.reader(file))) >= wanted
    scalars: set[str] = set()
    for events in (trained / "tensorboard").glob("events.*"):
        scalars |= set(EventAccumulator(str(events)).Reload().Tags()["scalars"])
    assert scalars >= wanted


@pytest.mark.slow
def test_wandb_logger_resumes_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a resumed run with a new W&B id, and tables that need a writable home, which some clusters lack."""
    (tmp_path / "no_folder").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "no_folder" / "share"))
    overrides = [*small("pipnet"), "scheduler=none", "logger=wandb", "hydra.run.dir=run"]
    for epochs in (1, 2):
        open_door("train", *overrides, f"trainer.max_epochs={epochs}", folder=tmp_path)
    summaries = [inspect(folder, "--summary")[0] for folder in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert sorted(run["config"]["trainer"]["max_epochs"] for run in summaries) == [1, 2]
    assert len({run["run_id"] for run in summaries}) == 1
    assert summaries[0]["run_id"].startswith("run-")
    assert {path.name for path in tmp_path.iterdir()} == {"no_folder", "run"}


def test_wandb_logger_tolerates_a_lost_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch a training that stops because the W&B process was killed, and one warning per step."""

    def lost(*_: object) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(WandbLogger, "log_metrics", lost)
    logger = TolerantWandbLogger(str(tmp_path), "project", "id", "name", "group", "train", [], offline=True)
    for step in range(3):
        logger.log_metrics({"a": 1.0}, step)
    assert [record.message for record in caplog.records if "continues without it" in record.message] == [
        "W&B has failed (ConnectionResetError: Connection lost); the run continues without it"
    ]


def test_train_does_not_import_wandb_without_its_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a second lost at every start, and a failure where W&B is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    overrides = [*small("pipnet"), "trainer.max_epochs=1", "logger=none", "hydra.run.dir=run"]
    open_door("train", *overrides, folder=tmp_path)
    assert "wandb" not in sys.modules
    assert (tmp_path / "run" / "samples" / "worst.png").exists()


# Charts without a run


def some_faces(*, points: int, **columns: Any) -> FaceTable:
    """Return five faces of 100 pixels with mean errors of 1, 2, 4, 9 and 30 pixels, without pose and tags."""
    error = np.repeat(np.array([[1.0], [2], [4], [9], [30]]), points, axis=1)
    lengths = dict.fromkeys(("ioc", "ipd", "box", "diag"), np.full(5, 100.0))
    unknown = np.full((5, 3), np.nan)
    others = {"pose": unknown, "tags": np.zeros((5, 0), bool), "pose_error": unknown}
    table = FaceTable(face_id=np.arange(5), error=error, valid=np.ones((5, points), bool), **lengths, **others)
    return table._replace(**columns)


def test_ced_chart_matches_the_auc() -> None:
    """Would catch curves that are cut off, scaled or counted in another way than the AUC."""
    table = some_faces(points=5)
    data = charts(table, FIVE5, ())["test/ced"].table.data
    x, y = (np.array([row[i] for row in data if row[1] == "box"]) for i in (0, 2))
    assert (x[0], x[-1], y[0], y[-1]) == (0, pytest.approx(10), 0, 80)
    assert y[(x > 2.05) & (x < 3.95)].tolist() == [40.0] * 19
    area = np.mean(y[:-1]) / 100  # a step function, constant from each x to the next
    assert area == pytest.approx(float(auc(nme_per_face(table, "box"), 0.1)), abs=0.01)


def test_charts_accept_unmeasurable_faces() -> None:
    """Would catch an infinite error, an empty subset or unknown poses that fail the run after its test."""
    table = some_faces(points=68, tags=np.array([[1, 0]] * 5, bool), ioc=np.full(5, np.nan))
    table.error[4, 0] = np.inf
    drawn = charts(table, IBUG68, ("blur", "empty"))
    assert drawn.keys() == {"test/nme_ioc_tag", "test/nme_ioc_region", "test/nme_box_size", "test/ced"}
    assert drawn["test/nme_ioc_tag"].table.data == [["blur", None, 0], ["empty", None, 0]]
    assert [row[1:] for row in drawn["test/nme_box_size"].table.data] == [[None, 0], [None, 0], [None, 5], [None, 0]]
    assert {row[1] for row in drawn["test/ced"].table.data} == {"box"}
    no_faces = FaceTable._make(column[:0] for column in table)
    assert "test/ced" not in charts(no_faces, IBUG68, ("blur", "empty"))
    json.dumps([chart.table.data for chart in drawn.values()], allow_nan=False)
