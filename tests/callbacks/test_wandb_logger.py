"""Tests of the W&B logger and its charts, read from the run's files without an account."""

import csv
import json
import math
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import small
from conftest import metrics_of, open_door
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.charts import charts
from callbacks.wandb_logger import ERROR_HEADING, TolerantWandbLogger
from facelab.faces.layouts import FIVE5, IBUG68, Layout
from facelab.metrics import detection, wider
from facelab.metrics.face_table import FaceTable, nme_per_face, read_faces
from facelab.metrics.landmarks import auc, ced, definitions

EPOCHS = 3
"""Epochs of the run that the tests share."""
BLOCK = 32768
"""Bytes of a block in W&B's file of a run."""
HEADER = struct.Struct("<IHB")
"""Header of a part of a record: checksum, number of bytes, and type (1 whole, 2 first, 3 middle, 4 last part)."""


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def read_records(folder: Path) -> list[Any]:
    """Read the records of a W&B run from its file, a log in the format of LevelDB.

    Older releases, such as the lowest that pyproject.toml allows, have no ``wandb leet inspect``.

    Returns:
        Messages of the type ``Record`` in W&B's ``wandb_internal.proto``.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # imported late: a test removes wandb from sys.modules

    (file,) = folder.glob("*.wandb")
    data = file.read_bytes()
    position, record, records = HEADER.size, b"", []  # the header of the file is as long
    while position < len(data):
        if (rest := BLOCK - position % BLOCK) < HEADER.size:  # no header is split; zeros fill the block
            position += rest
            continue
        _, length, part = HEADER.unpack_from(data, position)
        position += HEADER.size + length
        record += data[position - length : position]
        if part in (1, 4):
            records.append(Record.FromString(record))
            record = b""
    return records


def values(items: Iterable[Any]) -> dict[str, Any]:
    """Return the values of a record by name; the parts of a nested name are joined by a dot."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def config_of(records: list[Any]) -> dict[str, Any]:
    """Return the configuration of a run, without the entries of W&B and its charts."""
    entries = [item for record in records for item in values(record.config.update).items()]
    return {key: value for key, value in entries if key.partition(".")[0] != "_wandb"}


@pytest.fixture(scope="module")
def logged(trained: Path) -> Path:
    """Return the folder of the W&B run."""
    (folder,) = (trained / "wandb").glob("offline-run-*")
    return folder


@pytest.fixture(scope="module")
def records(logged: Path) -> list[Any]:
    return read_records(logged)


def history(records: list[Any], name: str) -> list[Any]:
    """Return every logged value of a name, in order."""
    return [item[name] for item in (values(record.history.item) for record in records) if name in item]


def metric_names(trained: Path, role: str) -> set[str]:
    """Return the metric_names of the metrics of a role, with its prefix."""
    return {f"{role}/{name}" for name in load(trained / "metrics.json")["metrics"]}


def rows(logged: Path, records: list[Any], name: str) -> Iterator[dict[str, Any]]:
    """Return the rows of a table that was logged once."""
    (path,) = history(records, f"{name}.path")
    table = load(logged / "files" / path)
    return (dict(zip(table["columns"], row, strict=True)) for row in table["data"])


def test_wandb_summary_contains_every_metric(trained: Path, records: list[Any]) -> None:
    """Would catch a metric missing in W&B, or replaced by a picture of the same name."""
    summary = {name: value for record in records for name, value in values(record.summary.update).items()}
    assert summary.keys() >= metric_names(trained, "val") | metric_names(trained, "test")
    for name, metric in metrics_of(trained).items():
        assert summary[f"test/{name}"] == pytest.approx(metric.value, rel=1e-5, nan_ok=True), name
    for name in metric_names(trained, "val"):
        assert len(history(records, name)) == EPOCHS, name


def test_wandb_run_has_config_tags_and_group(trained: Path, records: list[Any]) -> None:
    """Would catch runs of one sweep that cannot be grouped, filtered or distinguished by their overrides."""
    config = OmegaConf.to_container(OmegaConf.load(trained / "config.yaml"))
    assert config_of(records) == config
    (run,) = (record.run for record in records if record.HasField("run"))
    assert list(run.tags) == ["pipnet", "synthetic68", "test_resnet"]
    assert (run.run_group, run.job_type) == ("now", "train")
    assert run.display_name == "pipnet-test_resnet-synthetic68-s1"
    assert run.run_id == OmegaConf.load(trained / "config.yaml").paths.id
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0], "W&B shows it as crashed"


def test_charts_of_subsets_match_the_results(trained: Path, logged: Path, records: list[Any]) -> None:
    """Would catch a bar of another bucket than its label names, without its number of faces, or missing."""
    metrics = metrics_of(trained)
    drawn = set()
    for kind in ("nme_box_yaw", "nme_ioc_tag", "nme_ioc_region", "nme_box_size"):
        for row in rows(logged, records, f"test/{kind}_table"):
            name = f"{kind}_{row['part']}"
            assert in_percent(row[f"{kind[:7]}, %"]) == pytest.approx(100 * metrics[name].value, rel=1e-6, nan_ok=True)
            assert row["faces"] == metrics[name].faces
            drawn.add(name)
    assert drawn == {name for name, metric in metrics.items() if metric.breakdown}
    assert charts_of(records) == {f"test/{kind}" for kind in ("nme_box_yaw", "nme_ioc_tag", "nme_ioc_region")} | {
        "test/nme_box_size",
        "test/ced",
    }


def test_metrics_table_has_units_and_directions(trained: Path, logged: Path, records: list[Any]) -> None:
    """Would catch a metric in another unit than its table says, or missing in W&B's table."""
    metrics = metrics_of(trained)
    table = {row["metric"]: row for row in rows(logged, records, "test/metrics_table")}
    assert table.keys() == metrics.keys()
    assert (table["auc08_ioc"]["unit"], table["auc08_ioc"]["better"]) == ("%", "higher")
    assert (table["faces"]["unit"], table["faces"]["value"], table["faces"]["faces"]) == ("", 8, 8)
    assert table["nme_box"]["value"] == pytest.approx(100 * metrics["nme_box"].value)


def in_percent(cell: float | None) -> float:
    """Return the number of a cell; NaN for an empty one."""
    return math.nan if cell is None else cell


def charts_of(records: list[Any]) -> set[str]:
    """Return the names of the charts that W&B draws from tables."""
    keys = {key for record in records for key in values(record.config.update)}
    return {key.removeprefix("_wandb.visualize.") for key in keys if key.startswith("_wandb.visualize.")}


def test_ced_chart_matches_the_results(trained: Path, logged: Path, records: list[Any]) -> None:
    """Would catch a curve of other faces than the results, or in other units than its axis."""
    faces = read_faces(trained / "faces.csv")
    for row in rows(logged, records, "test/ced_table"):
        share = ced(faces[f"nme_{row['lineKey']}"], np.array([row["step"] / 100]))
        assert row["lineVal"] == pytest.approx(100 * share[0])


def test_worst_faces_table_matches_the_results(trained: Path, logged: Path, records: list[Any]) -> None:
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
    files = [file for record in records for file in record.artifact.manifest.contents]
    pictures = [file for file in files if file.path.startswith("media/images/")]
    assert len(pictures) == len(worst) == 8
    for file in pictures:
        assert Path(file.local_path).is_relative_to(logged), "stored outside of the run, in the user's home"
        assert Path(file.local_path).is_file()


def test_face_grid_is_logged_per_epoch(records: list[Any]) -> None:
    """Would catch pictures without the slider over the epochs."""
    logged = [values(record.history.item) for record in records]
    items = [item for item in logged if "val/face_grid.filenames" in item]
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
    folders = (tmp_path / "run" / "wandb").glob("offline-run-*")
    runs = [read_records(folder) for folder in folders]
    assert sorted(config_of(records)["trainer"]["max_epochs"] for records in runs) == [1, 2]
    (run_id,) = {record.run.run_id for records in runs for record in records if record.HasField("run")}
    assert run_id.startswith("run-")
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


def some_faces(layout: Layout, **columns: Any) -> FaceTable:
    """Return five faces of 100 pixels with mean errors of 1, 2, 4, 9 and 30 pixels, without pose and tags."""
    error = np.repeat(np.array([[1.0], [2], [4], [9], [30]]), layout.num_points, axis=1)
    lengths = dict.fromkeys(("ioc", "ipd", "box", "diag", "ioc_crop"), np.full(5, 100.0))
    unknown = np.full((5, 3), np.nan)
    others = {"pose": unknown, "tags": np.zeros((5, 0), bool), "pose_error": unknown, "error_crop": error[:, 0]}
    others |= {"layout": layout, "tag_names": (), "face_id": np.arange(5)}
    points = np.ones((5, layout.num_points), bool)
    return FaceTable(**{"error": error, "valid": points, **lengths, **others, **columns})


def test_ced_chart_matches_the_auc() -> None:
    """Would catch curves that are cut off, scaled or counted in another way than the AUC."""
    table = some_faces(FIVE5)
    data = charts(table, definitions(table))["test/ced"].table.data
    x, y = (np.array([row[i] for row in data if row[1] == "box"]) for i in (0, 2))
    assert (x[0], x[-1], y[0], y[-1]) == (0, pytest.approx(10), 0, 80)
    assert y[(x > 2.05) & (x < 3.95)].tolist() == [40.0] * 19
    area = np.mean(y[:-1]) / 100  # a step function, constant from each x to the next
    assert area == pytest.approx(float(auc(nme_per_face(table, "box"), 0.1)), abs=0.01)


def test_charts_accept_unmeasurable_faces() -> None:
    """Would catch an infinite error, an empty subset or unknown poses that fail the run after its test."""
    tags = {"tags": np.array([[1, 0]] * 5, bool), "tag_names": ("blur", "empty")}
    table = some_faces(IBUG68, ioc=np.full(5, np.nan), **tags)
    table.error[4, 0] = np.inf
    drawn = charts(table, definitions(table))
    assert drawn.keys() == {"test/nme_ioc_tag", "test/nme_ioc_region", "test/nme_box_size", "test/ced"}
    assert drawn["test/nme_ioc_tag"].table.data == [["blur", None, 0], ["empty", None, 0]]
    assert [row[1:] for row in drawn["test/nme_box_size"].table.data] == [[None, 0], [None, 0], [None, 5], [None, 0]]
    assert {row[1] for row in drawn["test/ced"].table.data} == {"box"}
    no_faces = table.select(slice(0))
    assert "test/ced" not in charts(no_faces, definitions(no_faces))
    json.dumps([chart.table.data for chart in drawn.values()], allow_nan=False)


def test_charts_of_a_detector() -> None:
    """Would catch a crash without errors of landmarks, and a bar that is not the metric of its part."""
    table = detection.example(("masked",))
    table = table._replace(tags=np.ones_like(table.tags))
    metrics = detection.definitions(table)
    drawn = charts(table, metrics)
    parts = {f"test/{each.whole}_{each.breakdown}" for each in metrics.values() if each.breakdown}
    assert parts > {"test/ap50_size", "test/recall_tag", "test/nme5_box_yaw"}
    assert drawn.keys() == parts | {"test/precision_recall", "test/recall_fppi"}
    recall = 100 * metrics["recall_tag_masked"].value()
    assert drawn["test/recall_tag"].table.data == [["masked", recall, 1]]


def test_charts_of_a_detector_contain_its_curves() -> None:
    """Would catch a line of another AP, fractions on an axis in percent, and a curve of no detection."""
    table = detection.example(wider.LISTS)
    table = table._replace(
        **{name: np.repeat(getattr(table, name), 4, axis=0) for name in ("boxes", "points", "photo")},
        scores=np.array([0.9, 0.8, 0.7, 0.6]),  # one hit, then three false detections
        tags=np.array([[True, False, True]]),
    )
    drawn = charts(table, {})
    lines = {
        name: np.array([row[::2] for row in chart.table.data if row[1] == "ap50"]) for name, chart in drawn.items()
    }
    precision = [[0, 100], [100, 100], [100, 50], [100, 100 / 3], [100, 25]]
    np.testing.assert_allclose(lines["test/precision_recall"], precision)
    recall = [[-2, 100], [0, 100], [math.log10(2), 100], [math.log10(3), 100]]
    np.testing.assert_allclose(lines["test/recall_fppi"], recall, atol=1e-12)
    assert {row[1] for row in drawn["test/recall_fppi"].table.data} == {"ap50", "wider_easy", "wider_hard"}
    assert drawn.keys() == {"test/precision_recall", "test/recall_fppi"}
    nothing = {name: getattr(table, name)[:0] for name in ("boxes", "points", "photo", "scores")}
    assert charts(table._replace(**nothing), {}) == {}
    json.dumps([chart.table.data for chart in drawn.values()], allow_nan=False)
