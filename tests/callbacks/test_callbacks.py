"""Tests of the callbacks that write pictures and results."""

import csv
import errno
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from composing import small
from conftest import PLAIN, metrics_of, open_door
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import pictures
from callbacks.pictures import FaceGrid, WorstFaces, save_picture
from callbacks.results import Results
from datamodules.landmark import fingerprint
from facelab.faces.batch import LandmarkBatch
from facelab.faces.layouts import FIVE5
from facelab.metrics import landmarks
from facelab.metrics.face_table import FaceTable, face_table, nme_per_face, read_faces
from facelab.metrics.record import RESAMPLES
from facelab.profiling.cost import cost
from facelab.runs.build import build
from facelab.runs.checkpoint import load_run

EYE = torch.eye(3)


def read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert picture is not None, path
    return picture


def test_face_grid_and_worst_faces_write_their_pictures(trained: Path) -> None:
    """Would catch an epoch without a picture, a grid of another size, or an empty one."""
    options = OmegaConf.load(trained / "config.yaml").callbacks.face_grid
    width = options.columns * options.tile
    sizes = {path.name: read(path).shape for path in (trained / "samples").iterdir()}
    one_row, two_rows = (options.tile, width, 3), (2 * options.tile, width, 3)
    epochs = {f"epoch_{epoch:03d}.png": one_row for epoch in range(3)}
    assert sizes == {**epochs, "test.png": two_rows, "worst.png": two_rows}
    first, last = (read(trained / "samples" / f"epoch_{epoch:03d}.png") for epoch in (0, 2))
    assert first.std() > 20
    assert (first != last).any()


def test_save_picture_logs_to_tensorboard_and_wandb(trained: Path) -> None:
    """Would catch pictures that exist only in the run folder."""
    names = {"val/face_grid", "test/face_grid", "test/worst_faces"}
    logged = set()
    for file in (trained / "tensorboard").glob("events.*"):
        logged |= set(EventAccumulator(str(file), {"images": 0}).Reload().Tags()["images"])
    assert logged == names
    media = next((trained / "wandb").glob("offline-run-*")) / "files" / "media" / "images"
    saved = {path.relative_to(media).with_suffix("").as_posix() for path in media.rglob("*.png")}
    assert {"_".join(name.split("_")[:-2]) for name in saved} == names


def sample(row: int) -> LandmarkBatch:
    """Return a face with an image of one grey that encodes its row, and with its points in the corner."""
    points = torch.zeros(FIVE5.num_points, 2)
    every_point = torch.ones(FIVE5.num_points, dtype=torch.bool)
    image = torch.full((3, 32, 32), 20 * row, dtype=torch.uint8)
    pose = torch.zeros(3)
    return LandmarkBatch(
        image, points, every_point, every_point, torch.zeros(0, dtype=torch.bool), pose, EYE, torch.tensor(row)
    )


class Faces:
    """Split of such faces."""

    layout = FIVE5
    paths = tuple(Path(f"face{row}.jpg") for row in range(12))

    def __getitem__(self, key: tuple[int, int]) -> LandmarkBatch:
        assert key[0] == 0
        return sample(key[1])


def batch_of(rows: list[int]) -> LandmarkBatch:
    return LandmarkBatch(*(torch.stack(column) for column in zip(*map(sample, rows), strict=True)))


def fake_trainer(world_size: int = 1) -> Any:
    datamodule = SimpleNamespace(faces={"test": Faces()}, data=SimpleNamespace(tags=()))
    return SimpleNamespace(
        loggers=[], datamodule=datamodule, current_epoch=0, global_step=0, world_size=world_size, is_global_zero=True
    )


def rows_in_picture(path: Path, tile: int, count: int) -> list[int]:
    """Return the rows of the faces in a picture, from the grey in the middle of each tile."""
    return [round(float(read(path)[tile // 2, i * tile + tile // 2].mean()) / 20) for i in range(count)]


def test_worst_faces_come_first(tmp_path: Path) -> None:
    """Would catch the best faces shown as the worst, or faces without an error or prediction before them."""
    errors = {3: 1.0, 5: 4.0, 6: np.inf, 8: np.nan, 9: 2.0, 11: 3.0}
    rows, n = list(errors), FIVE5.num_points
    points = np.tile(np.array([[0, 0], [10, 0], [5, 5], [0, 10], [10, 10]], np.float32), (len(rows), 1, 1))
    predicted = points + np.array([errors[row] for row in rows], np.float32)[:, None, None]
    table = face_table(
        FIVE5,
        face_id=np.array(rows),
        predicted=predicted,
        points=points,
        valid=np.array([[not np.isnan(errors[row])] * n for row in rows]),
        to_photo=np.tile(np.eye(3), (len(rows), 1, 1)),
        pose=np.zeros((len(rows), 3)),
        tags=np.zeros((len(rows), 0), bool),
        tag_names=(),
    )
    worst, module = WorstFaces(str(tmp_path), columns=5, rows=1, tile=64), SimpleNamespace(layout=FIVE5, table=table)
    for part in ([0, 1, 2, 3], [4, 5]):
        batch = batch_of([rows[i] for i in part])
        outputs = SimpleNamespace(points=torch.zeros(len(part), n, 2))
        worst.on_test_batch_end(fake_trainer(), module, outputs, batch, 0)  # type: ignore[arg-type]
    worst.on_test_end(fake_trainer(), module)  # type: ignore[arg-type]
    assert rows_in_picture(tmp_path / "worst.png", 64, 5) == [6, 5, 11, 9, 3]


def test_worst_faces_are_gathered_from_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the worst faces of only one rank, or a face of another rank without its prediction."""
    rows, n = [1, 2, 3, 4], FIVE5.num_points
    points = np.tile(np.array([[0, 0], [10, 0], [5, 5], [0, 10], [10, 10]], np.float32), (4, 1, 1))
    table = face_table(
        FIVE5,
        face_id=np.array(rows),
        predicted=points + np.array(rows, np.float32)[:, None, None],
        points=points,
        valid=np.ones((4, n), bool),
        to_photo=np.tile(np.eye(3), (4, 1, 1)),
        pose=np.zeros((4, 3)),
        tags=np.zeros((4, 0), bool),
        tag_names=(),
    )
    module: Any = SimpleNamespace(layout=FIVE5, table=table, device=torch.device("cpu"))
    sent: list[torch.Tensor] = []
    drawn: list[float] = []

    def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
        sent.append(tensor)
        return sent

    def draw(image: np.ndarray, *_: Any, prediction: np.ndarray, side: int, **__: Any) -> np.ndarray:
        drawn.append(float(prediction.mean()))
        return np.full((side, side, 3), image[0, 0])

    monkeypatch.setattr(pictures, "gather_all_tensors", gather)
    monkeypatch.setattr(pictures, "tile", draw)
    for part in ([2, 4, 1], [1, 3]):  # both ranks have face 1; rank 1 gathers after rank 0
        worst, batch = WorstFaces(str(tmp_path), columns=3, rows=1, tile=64), batch_of(part)
        predicted = torch.tensor(part, dtype=torch.float32)[:, None, None].expand(-1, n, 2)
        worst.on_test_batch_end(fake_trainer(2), module, SimpleNamespace(points=predicted), batch, 0)
        drawn.clear()
        worst.on_test_end(fake_trainer(2), module)
    assert rows_in_picture(tmp_path / "worst.png", 64, 3) == [4, 3, 2]
    assert drawn == [4, 3, 2]


def test_face_grid_shows_the_first_faces(tmp_path: Path) -> None:
    """Would catch faces that change from epoch to epoch, or of another epoch than the file name gives."""
    grid, module = FaceGrid(str(tmp_path), columns=3, rows=1, tile=64), SimpleNamespace(layout=FIVE5)
    for _ in range(2):
        for rows in ([1, 2], [3, 4], [5]):
            outputs = SimpleNamespace(points=torch.zeros(len(rows), FIVE5.num_points, 2))
            grid.on_validation_batch_end(fake_trainer(), module, outputs, batch_of(rows), 0)  # type: ignore[arg-type]
        grid.on_validation_epoch_end(fake_trainer(), module)  # type: ignore[arg-type]
        assert rows_in_picture(tmp_path / "epoch_000.png", 64, 3) == [1, 2, 3]
        assert read(tmp_path / "epoch_000.png").shape == (64, 3 * 64, 3)


def test_save_picture_keeps_the_old_file_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch half a picture, or a temporary file, after a full disk."""
    path, picture = tmp_path / "samples" / "test.png", np.zeros((8, 8, 3), np.uint8)
    save_picture(fake_trainer(), picture, path, "test/face_grid")
    before = path.read_bytes()

    def fail(self: Path, content: bytes) -> int:
        self.open("wb").write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*samples/test\.png'"):
        save_picture(fake_trainer(), picture + 255, path, "test/face_grid")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["test.png"]


def test_save_picture_keeps_the_colour_order(tmp_path: Path) -> None:
    """Would catch swapped red and blue: OpenCV writes BGR."""
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    save_picture(fake_trainer(), red, tmp_path / "red.png", "test/face_grid")
    assert (read(tmp_path / "red.png") == red).all()


# Results


def evaluate_again(run: Path, cache: Path, folder: Path) -> tuple[Any, Any]:
    """Test a run again without the door, and return its module and datamodule."""
    paths = {"data": "nowhere", "cache": str(cache), "run": str(folder), "name": "x", "group": "g", "id": "i"}
    opened = load_run(run, OmegaConf.create(paths))
    datamodule = build(opened.cfg, "datamodule")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[Results(str(folder))], **quiet)  # type: ignore[arg-type]
    trainer.test(opened.module, datamodule, verbose=False)
    return opened.module, datamodule


def test_results_are_written_by_the_callback(trained: Path, cache: Path, tmp_path: Path) -> None:
    """Would catch results that only a door can write: with ddp_spawn the table exists only in other processes."""
    module, datamodule = evaluate_again(trained, cache, tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["faces.csv", "metrics.json"]
    results, before = (json.loads((run / "metrics.json").read_text()) for run in (tmp_path / "again", trained))
    assert results.keys() == {"name", "protocol", "metrics", "cost", "unreadable"}
    assert results["name"] == "again"
    assert results["protocol"] == before["protocol"]
    metrics, expected = metrics_of(tmp_path / "again"), metrics_of(trained)
    assert metrics.keys() == expected.keys()
    for name, metric in metrics.items():
        assert metric.value == pytest.approx(expected[name].value, abs=1e-6, nan_ok=True), name
        assert metric.low <= metric.value <= metric.high or metric.unit == "count" or metric.faces == 0, name
    assert results["cost"] == cost(module, datamodule.crop.size, pose=False)
    faces = read_faces(tmp_path / "again" / "faces.csv")
    assert faces["photo"].tolist() == [path.name for path in datamodule.faces["test"].paths]
    np.testing.assert_array_equal(faces["nme_box"], nme_per_face(module.table, "box"))


def test_results_are_written_by_rank_zero_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch files that several processes write at once."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    Results(str(tmp_path)).on_test_end(fake_trainer(2), SimpleNamespace())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_intervals_of_yaw_buckets() -> None:
    """Would catch the spread of the mean of three buckets computed over all faces, most of which are frontal."""
    random, n = np.random.default_rng(0), 300
    yaw = np.repeat([0.0, 45, 80], (260, 30, 10))
    box = random.normal(0.02, 0.002, n) + np.repeat([0, 0.02, 0.08], (260, 30, 10)) * random.normal(1, 0.5, n)
    points = FIVE5.num_points
    table = FaceTable(
        layout=FIVE5,
        tag_names=(),
        face_id=np.arange(n),
        error=np.repeat(100 * box[:, None], points, axis=1),
        valid=np.ones((n, points), bool),
        **dict.fromkeys(("ioc", "ipd", "box", "diag", "ioc_crop"), np.full(n, 100.0)),
        error_crop=100 * box,
        pose=np.stack([yaw, yaw, yaw], axis=1),
        tags=np.zeros((n, 0), bool),
        pose_error=np.full((n, 3), np.nan),
    )
    records = {name: metric.record(RESAMPLES, seed=0) for name, metric in landmarks.definitions(table).items()}
    width = {name: record.high - record.low for name, record in records.items()}
    buckets = [f"nme_box_yaw_{name}" for name in landmarks.YAW_BUCKETS]
    deviations = [box[yaw == angle].std() / math.sqrt((yaw == angle).sum()) for angle in (0, 45, 80)]
    for name, deviation in zip(buckets, deviations, strict=True):
        assert width[name] == pytest.approx(2 * 1.96 * deviation, rel=0.2)
    assert width["nme_box_yaw_mean"] == pytest.approx(2 * 1.96 * math.hypot(*deviations) / 3, rel=0.2)
    for name in (*buckets, "nme_box_yaw_mean"):
        assert records[name].low < records[name].value < records[name].high
    frontal = landmarks.definitions(table.select(slice(260)))["nme_box_yaw_mean"].record(RESAMPLES, seed=0)
    assert np.isnan(frontal[:3]).all()


def some_faces(folder: str = "a", move: float = 0.0, name: str = "1.jpg") -> Any:
    points = np.arange(20, dtype=np.float64).reshape(2, 5, 2) / 3
    points[1, 4, 1] += move
    return SimpleNamespace(
        paths=[Path(folder, "0.jpg"), Path(folder, name)], faces=[SimpleNamespace(points=each) for each in points]
    )


def test_fingerprint_depends_on_the_ground_truth_only() -> None:
    """Would catch two machines with other fingerprints for equal data, or equal ones for other data."""
    reference = fingerprint(some_faces(), [0, 1])
    assert reference == "e92712e01eb6d494"
    assert fingerprint(some_faces(folder="/other/machine"), [0, 1]) == reference
    for other in (some_faces(move=0.01), some_faces(name="2.jpg")):
        assert fingerprint(other, [0, 1]) != reference
    assert fingerprint(some_faces(), [0]) != reference


@pytest.mark.parametrize("terminal", [False, True])
def test_epoch_lines_replace_the_progress_bar_outside_a_terminal(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a log file without progress, or a progress bar that lines interrupt."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    overrides = [*small("pipnet"), *PLAIN, "trainer.max_epochs=2", "hydra.run.dir=run"]
    open_door("train", *overrides, folder=tmp_path)
    text = (tmp_path / "run" / "train.log").read_text()
    lines = re.findall(r"epoch (\d) of 2: train/loss \d\S*, val/nme_box \d\S*, \d+ s", text)
    assert lines == ([] if terminal else ["1", "2"])


def test_train_logs_the_loss_of_epochs_shorter_than_log_every_n_steps(tmp_path: Path) -> None:
    """Would catch a training with fewer steps than log_every_n_steps that logs no loss."""
    overrides = [*small("pipnet"), "logger=csv", "trainer.log_every_n_steps=1000", "trainer.max_epochs=2"]
    open_door("train", *overrides, "hydra.run.dir=run", folder=tmp_path)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        epochs = [row["epoch"] for row in csv.DictReader(file) if row["train/loss"]]
    assert epochs == ["0", "1"]
