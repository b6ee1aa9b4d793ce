"""The pictures of a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import pictures
from callbacks.pictures import FaceGrid, WorstFaces, save_picture
from facelab.landmarks.batch import LandmarkBatch
from facelab.landmarks.layouts import FIVE5
from facelab.metrics.faces import face_table

EYE = torch.eye(3)


def read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert picture is not None, path
    return picture


def test_pictures_after_training(trained: Path) -> None:
    """An epoch without its picture, a grid of another size, or one that shows nothing."""
    look = OmegaConf.load(trained / "config.yaml").callbacks.face_grid
    width = look.columns * look.cell
    sizes = {path.name: read(path).shape for path in (trained / "samples").iterdir()}
    one_row, two_rows = (look.cell, width, 3), (2 * look.cell, width, 3)
    epochs = {f"epoch_{epoch:03d}.png": one_row for epoch in range(3)}
    assert sizes == {**epochs, "test.png": two_rows, "worst.png": two_rows}
    first, last = (read(trained / "samples" / f"epoch_{epoch:03d}.png") for epoch in (0, 2))
    assert first.std() > 20
    assert (first != last).any()


def test_loggers_receive_the_pictures(trained: Path) -> None:
    """Pictures that only lie on the disk of a machine nobody looks at."""
    names = {"val/faces", "test/faces", "test/worst_faces"}
    shown = set()
    for file in (trained / "tensorboard").glob("events.*"):
        shown |= set(EventAccumulator(str(file), {"images": 0}).Reload().Tags()["images"])
    assert shown == names
    media = next((trained / "wandb").glob("offline-run-*")) / "files" / "media" / "images"
    found = {path.relative_to(media).with_suffix("").as_posix() for path in media.rglob("*.png")}
    assert {"_".join(name.split("_")[:-2]) for name in found} == names


def sample(row: int) -> LandmarkBatch:
    """A face whose picture is one grey that tells its row, its points in the corner."""
    points = torch.zeros(FIVE5.num_points, 2)
    some = torch.ones(FIVE5.num_points, dtype=torch.bool)
    image = torch.full((3, 32, 32), 20 * row, dtype=torch.uint8)
    box, pose = torch.zeros(4), torch.zeros(3)
    return LandmarkBatch(image, points, some, some, torch.zeros(0, dtype=torch.bool), box, pose, EYE, torch.tensor(row))


class Faces:
    """A split of such faces."""

    paths = tuple(Path(f"face{row}.jpg") for row in range(12))

    def __getitem__(self, key: tuple[int, int]) -> LandmarkBatch:
        assert key[0] == 0
        return sample(key[1])


def batch_of(rows: list[int]) -> LandmarkBatch:
    return LandmarkBatch(*(torch.stack(column) for column in zip(*map(sample, rows), strict=True)))


def fake_trainer() -> Any:
    return SimpleNamespace(
        loggers=[], datamodule=SimpleNamespace(faces={"test": Faces()}), current_epoch=0, global_step=0
    )


def greys(path: Path, cell: int, count: int) -> list[int]:
    """The rows of the faces in a picture, by the grey in the middle of their cells."""
    return [round(float(read(path)[cell // 2, i * cell + cell // 2].mean()) / 20) for i in range(count)]


def test_the_worst_come_first(tmp_path: Path) -> None:
    """The best faces shown as the worst; a face that could not be measured, or was not predicted, before them."""
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
    )
    worst, module = WorstFaces(str(tmp_path), columns=5, rows=1, cell=64), SimpleNamespace(layout=FIVE5, table=table)
    for part in ([0, 1, 2, 3], [4, 5]):
        batch = batch_of([rows[i] for i in part])
        outputs = SimpleNamespace(points=torch.zeros(len(part), n, 2))
        worst.on_test_batch_end(fake_trainer(), module, outputs, batch, 0)  # type: ignore[arg-type]
    worst.on_test_end(fake_trainer(), module)  # type: ignore[arg-type]
    assert greys(tmp_path / "worst.png", 64, 5) == [6, 5, 11, 9, 3]


def test_faces_of_another_process_leave_no_gap(tmp_path: Path) -> None:
    """The worst faces of all processes chosen first, of which this one can then show half."""
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
    )
    worst, module = WorstFaces(str(tmp_path), columns=2, rows=1, cell=64), SimpleNamespace(layout=FIVE5, table=table)
    batch, outputs = batch_of([1, 3]), SimpleNamespace(points=torch.zeros(2, n, 2))
    worst.on_test_batch_end(fake_trainer(), module, outputs, batch, 0)  # type: ignore[arg-type]
    worst.on_test_end(fake_trainer(), module)  # type: ignore[arg-type]
    assert greys(tmp_path / "worst.png", 64, 2) == [3, 1]


def test_the_grid_holds_the_first_faces(tmp_path: Path) -> None:
    """Faces that change from epoch to epoch, or of another epoch than the name says."""
    grid, module = FaceGrid(str(tmp_path), columns=3, rows=1, cell=64), SimpleNamespace(layout=FIVE5)
    for _ in range(2):
        for rows in ([1, 2], [3, 4], [5]):
            outputs = SimpleNamespace(points=torch.zeros(len(rows), FIVE5.num_points, 2))
            grid.on_validation_batch_end(fake_trainer(), module, outputs, batch_of(rows), 0)  # type: ignore[arg-type]
        grid.on_validation_epoch_end(fake_trainer(), module)  # type: ignore[arg-type]
        assert greys(tmp_path / "epoch_000.png", 64, 3) == [1, 2, 3]
        assert read(tmp_path / "epoch_000.png").shape == (64, 3 * 64, 3)


def test_a_picture_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a picture, or a temporary file, after a full disk."""
    path, picture = tmp_path / "samples" / "test.png", np.zeros((8, 8, 3), np.uint8)
    save_picture(fake_trainer(), picture, path, "test/faces")
    before = path.read_bytes()

    def fail(name: str, image: np.ndarray) -> bool:
        Path(name).write_bytes(b"half")
        return False

    monkeypatch.setattr(pictures.cv2, "imwrite", fail)
    with pytest.raises(OSError, match=r"test\.png could not be written"):
        save_picture(fake_trainer(), picture + 255, path, "test/faces")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["test.png"]


def test_colours_are_not_swapped(tmp_path: Path) -> None:
    """Blue faces: OpenCV writes BGR."""
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    save_picture(fake_trainer(), red, tmp_path / "red.png", "test/faces")
    assert (read(tmp_path / "red.png") == red).all()
