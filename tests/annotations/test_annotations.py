"""Tests of the dataset readers, on files that formats/ writes and on real ones."""

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, face_data
from formats.folder import read as folder
from formats.folder import write as write_folder
from formats.folder_of_splits import write as write_folder_of_splits
from formats.lapa106 import read as lapa
from formats.lapa106 import write as write_lapa
from formats.wflw98 import LISTS as WFLW_LISTS
from formats.wflw98 import read as wflw
from formats.wflw98 import wflw_line
from formats.wflw98 import write as write_wflw
from formats.ytf68 import TEST_PERSON, TRAIN_PERSON, VAL_PERSON
from formats.ytf68 import read as ytf
from formats.ytf68 import write as write_ytf
from writing import flat, image, pairs, pts, some_points, write

from facelab.annotations.lapa106 import LaPa
from facelab.annotations.points_file import hash_fraction
from facelab.annotations.wflw98 import WFLW
from facelab.annotations.ytf68 import YTFaces
from facelab.errors import ConfigError, DatasetError
from facelab.faces.crop import Crop
from facelab.faces.face import Annotations, Photo, Split
from facelab.faces.geometry import Array
from facelab.faces.image import PhotoFile
from facelab.faces.layouts import FIVE5, IBUG68, LAPA106, WFLW98

SPLITS: tuple[Split, ...] = get_args(Split)
FORMATS: dict[str, Any] = {
    path.stem: import_module(f"formats.{path.stem}")
    for path in sorted(Path(__file__).with_name("formats").glob("*.py"))
    if path.stem != "__init__"
}
"""Formats in ``formats/``; its ``__init__.py`` lists the attributes of each."""
LINES = [name for name, each in FORMATS.items() if hasattr(each, "LINE")]
REAL: dict[str, tuple[Callable[[Path], Annotations], tuple[Split, ...]]] = {
    name: (each.read, splits) for each in FORMATS.values() for name, splits in getattr(each, "REAL", {}).items()
}
FOLDERS = [text for path in (ROOT / "conf" / "data").glob("*.yaml") if "\nroot:" in (text := path.read_text())]
READERS = sorted({name for text in FOLDERS for name in re.findall(r"_target_: facelab\.annotations\.(\w+)", text)})
"""Readers of folders that conf/data names."""


def num_faces(photos: list[Photo]) -> int:
    return sum(len(photo.faces) for photo in photos)


def identity(photos: list[Photo]) -> Counter[tuple[Path, bytes]]:
    return Counter((photo.path, face.points.tobytes()) for photo in photos for face in photo.faces)


def check_protocol(annotations: Annotations, splits: tuple[Split, ...]) -> None:
    """Check shapes, dtypes, tags and splits of annotations."""
    per_split = {split: annotations.photos(split) for split in splits}
    all_photos = annotations.photos("all")
    assert annotations.name
    n = annotations.layout.num_points
    for photo in all_photos:
        assert isinstance(photo.path, Path)
        assert photo.path.is_file()
        assert photo.faces or annotations.layout is FIVE5  # a detection dataset has photos without a face
        for face in photo.faces:
            shapes = {field: value.shape for field, value in face._asdict().items() if field != "tags"}
            assert shapes == {"box": (4,), "points": (n, 2), "visible": (n,), "pose": (3,)}
            assert face.box.dtype == face.points.dtype == face.pose.dtype == np.float32
            assert face.visible.dtype == np.bool_
            assert not np.isinf(face.points).any()
            assert not (face.visible & np.isnan(face.points).any(-1)).any()
            assert face.tags <= set(annotations.tags)
    for split, photos in per_split.items():
        assert photos, split
        assert [photo.path for photo in annotations.photos(split)] == [photo.path for photo in photos]
    paths = [photo.path for photos in per_split.values() for photo in photos]
    assert len(set(paths)) == len(paths)
    assert sum((identity(photos) for photos in per_split.values()), Counter()) == identity(all_photos)


@pytest.mark.parametrize("reader", READERS)
def test_readers_have_a_format_file(reader: str) -> None:
    """Would catch a dataset that no test reads."""
    assert reader in FORMATS, f"add tests/annotations/formats/{reader}.py; its __init__.py describes the content"


@pytest.mark.parametrize("name", FORMATS)
def test_reader_follows_the_protocol(name: str, tmp_path: Path) -> None:
    """Would catch a wrong shape or dtype, a photo in two splits or missing in "all", and a changing order."""
    FORMATS[name].write(tmp_path)
    check_protocol(FORMATS[name].read(tmp_path), ("train", "val", "test"))


@pytest.mark.parametrize("name", REAL)
def test_reader_follows_the_protocol_on_real_data(name: str) -> None:
    """Would catch a format that the writers of these tests misunderstand."""
    reader, splits = REAL[name]
    check_protocol(reader(face_data(name)), splits)


@pytest.mark.parametrize("name", [name for name, each in FORMATS.items() if hasattr(each, "KNOWN")])
def test_reader_returns_the_points_of_the_file(name: str, tmp_path: Path) -> None:
    """Would catch x and y exchanged, another order, a shift by one pixel, or lost negative coordinates."""
    FORMATS[name].write(tmp_path)
    photo, points = FORMATS[name].KNOWN
    (face,) = next(p.faces for p in FORMATS[name].read(tmp_path).photos("all") if p.path == tmp_path / photo)
    np.testing.assert_allclose(face.points, points, atol=1e-4)
    assert face.points.min() < 0


@pytest.mark.parametrize("name", [name for name, each in FORMATS.items() if not hasattr(each, "KNOWN")])
def test_reader_returns_the_boxes_of_the_file(name: str, tmp_path: Path) -> None:
    """Would catch a width read as a corner, a shift by a pixel, and a lost row without an area."""
    FORMATS[name].write(tmp_path)
    path, boxes = FORMATS[name].BOX
    faces = next(photo.faces for photo in FORMATS[name].read(tmp_path).photos("all") if photo.path == tmp_path / path)
    np.testing.assert_array_equal([face.box for face in faces], boxes)


@pytest.mark.parametrize("name", FORMATS)
def test_reader_refuses_a_missing_or_empty_folder(name: str, tmp_path: Path) -> None:
    """Would catch a mistyped root that gives 0 photos, or a message without the source of the dataset."""
    reader = FORMATS[name].read
    with pytest.raises(DatasetError, match=r"nowhere is not an existing folder; expected .*data\.root=FOLDER"):
        reader(tmp_path / "nowhere").photos("train")
    with pytest.raises(DatasetError, match="is empty; expected"):
        reader(tmp_path).photos("train")
    (tmp_path / "other").mkdir()
    with pytest.raises(DatasetError, match="contains other; expected"):
        reader(tmp_path).photos("train")


@pytest.mark.parametrize("name", FORMATS)
def test_reader_refuses_an_unknown_split(name: str, tmp_path: Path) -> None:
    """Would catch a mistyped split that gives an empty list."""
    writer, reader = FORMATS[name].write, FORMATS[name].read
    writer(tmp_path)
    with pytest.raises(DatasetError, match="'valid'"):
        reader(tmp_path).photos("valid")  # type: ignore[arg-type]


def break_line(path: Path, line: int, change: Callable[[str], str]) -> None:
    """Rewrite one line of a file, counted from 1."""
    lines = path.read_text().splitlines()
    lines[line - 1] = change(lines[line - 1])
    path.write_text("\n".join(lines) + "\n")


def in_first_field(value: str, separator: str | None) -> Callable[[str], str]:
    """Return a function that replaces the first number of a line: field 1, or field 2 after a name."""
    if separator == ",":
        return lambda line: ",".join([line.split(",")[0], value, *line.split(",")[2:]])
    return lambda line: " ".join([value, *line.split()[1:]])


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("12.x", "'12.x' is not a number"),
        ("inf", "'inf' is not a finite number"),
        ("1e50", "'1e50' is not a finite number"),
        ("1_0", "'1_0' is not a number"),
        ("é", "is not a num"),
    ],
)
def test_reader_refuses_a_malformed_number(name: str, value: str, message: str, tmp_path: Path) -> None:
    """Would catch a number that is misread, or a message without file and line."""
    writer, reader = FORMATS[name].write, FORMATS[name].read
    writer(tmp_path)
    path, line, separator = FORMATS[name].LINE
    break_line(tmp_path / path, line, in_first_field(value, separator))
    with pytest.raises(DatasetError, match=f"{path.name}, line {line}: .*{message}"):
        reader(tmp_path).photos("all")


@pytest.mark.parametrize("name", LINES)
def test_reader_accepts_nan_only_in_custom_data(name: str, tmp_path: Path) -> None:
    """Would catch NaN from a broken export of a fully annotated set that masks points without a message."""
    writer, reader = FORMATS[name].write, FORMATS[name].read
    writer(tmp_path)
    path, line, separator = FORMATS[name].LINE
    break_line(tmp_path / path, line, in_first_field("nan", separator))
    may_be_missing = getattr(FORMATS[name], "MAY_BE_MISSING", False)
    message = "one coordinate is nan, the other not" if may_be_missing else "every number is needed"
    with pytest.raises(DatasetError, match=f"{path.name}, line {line}: .*{message}"):
        reader(tmp_path).photos("all")
    if may_be_missing:
        break_line(tmp_path / path, line, lambda _: "nan nan")
        photo = next(
            p for p in reader(tmp_path).photos("all") if p.path.stem == path.stem and "test" not in p.path.parts
        )
        assert np.isnan(photo.faces[0].points[line - 1]).all()
        assert np.flatnonzero(~photo.faces[0].visible).tolist() == [line - 1]


@pytest.mark.parametrize("name", LINES)
def test_reader_refuses_a_wrong_number_of_values(name: str, tmp_path: Path) -> None:
    """Would catch an extra value or a blank line that shifts all later values by one."""
    writer, reader = FORMATS[name].write, FORMATS[name].read
    path, line, separator = FORMATS[name].LINE
    for change in (
        lambda text: text.replace(separator or " ", f"{separator or ' '}1{separator or ' '}", 1),
        lambda _: "",
    ):
        writer(tmp_path)
        break_line(tmp_path / path, line, change)
        with pytest.raises(DatasetError, match=rf"{path.name}, line {line}: found \d+ values, expected \d+"):
            reader(tmp_path).photos("all")


def test_reader_refuses_files_of_another_layout(tmp_path: Path) -> None:
    """Would catch a message without the file, the line, both numbers of points or the layout."""
    write_lapa(tmp_path / "lapa")
    reader = LaPa("lapa", str(tmp_path / "lapa"), IBUG68, skip_unpaired=False)
    expected = rf"train0\.txt, line 1: expected the number of points of the layout {IBUG68.name}, 68, found '106'"
    with pytest.raises(DatasetError, match=expected):
        reader.photos("train")
    write_folder(tmp_path / "folder")
    wflw_folder = folder(tmp_path / "folder", layout=WFLW98)
    with pytest.raises(
        DatasetError, match=rf"0\.txt, line 69: expected the 98 points of the layout {WFLW98.name}, found 68"
    ):
        wflw_folder.photos("all")
    (tmp_path / "folder" / "0.txt").unlink()
    write(tmp_path / "folder" / "0.pts", pts(some_points(IBUG68)))
    with pytest.raises(DatasetError, match=r"0\.pts, line 2: .* 98, found '68'"):
        wflw_folder.photos("all")
    write_ytf(tmp_path / "ytf")
    with pytest.raises(
        DatasetError, match=rf"line 2: found 136 values, expected 196 \(98 points of the layout {WFLW98.name}"
    ):
        YTFaces("ytf", str(tmp_path / "ytf"), WFLW98, skip_unpaired=False).photos("train")
    write_wflw(tmp_path / "wflw")
    with pytest.raises(DatasetError, match=rf"line 1: found 206 values, expected 222 \(106 points .* {LAPA106.name}"):
        WFLW("wflw", str(tmp_path / "wflw"), LAPA106, 0.1, skip_unpaired=False).photos("test")


# LaPa


def test_lapa_lists_the_existing_splits(tmp_path: Path) -> None:
    """Would catch a set with only a test split that trains on nothing."""
    write_lapa(tmp_path)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(DatasetError, match="no split 'train', only val, test"):
        lapa(tmp_path).photos("train")
    assert len(lapa(tmp_path).photos("all")) == 3


def test_lapa_refuses_an_empty_split_or_file(tmp_path: Path) -> None:
    """Would catch a split folder without content, and a file without points, that give no error."""
    write_lapa(tmp_path)
    shutil.rmtree(tmp_path / "train" / "images")
    shutil.rmtree(tmp_path / "train" / "landmarks")
    with pytest.raises(DatasetError, match=r"train is empty; expected images/\*\.jpg and landmarks/\*\.txt"):
        lapa(tmp_path).photos("train")
    (tmp_path / "val" / "landmarks" / "val0.txt").write_text("\n")
    with pytest.raises(DatasetError, match=r"val0\.txt is empty"):
        lapa(tmp_path).photos("val")


def test_lapa_refuses_a_truncated_file(tmp_path: Path) -> None:
    """Would catch a file that ends early and is read as a face with fewer points."""
    write_lapa(tmp_path)
    path = tmp_path / "test" / "landmarks" / "test0.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        DatasetError, match=rf"test0\.txt, line 107: expected the 106 points .*{LAPA106.name}, found 105"
    ):
        lapa(tmp_path).photos("test")
    path.write_text("106\n")
    with pytest.raises(DatasetError, match=r"test0\.txt, line 2: .*found 0"):
        lapa(tmp_path).photos("test")


# Missing files


def test_reader_refuses_or_skips_unpaired_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch images or points that are dropped without a message."""
    write_lapa(tmp_path / "lapa")
    write_folder(tmp_path / "folder")
    for i in range(4):
        image(tmp_path / "lapa" / "train" / "images" / f"new{i}.jpg")
        image(tmp_path / "folder" / f"new{i}.jpg")
    (tmp_path / "lapa" / "train" / "images" / "train2.jpg").unlink()
    (tmp_path / "folder" / "0.jpg").unlink()
    cases: tuple[tuple[Callable[..., Annotations], Path, Split, str, str, int], ...] = (
        (lapa, tmp_path / "lapa", "train", r"4 images/\*\.jpg without landmarks/\*\.txt", "train2", 2),
        (folder, tmp_path / "folder", "all", "4 images without a file of points", "0", 39),
    )
    for reader, root, split, images, points, remaining in cases:
        message = rf"{images} \(new0, new1, new2, \.\.\.\); 1 .* \({points}\)"
        with pytest.raises(DatasetError, match=message + r"\. .*data\.skip_unpaired=true"):
            reader(root).photos(split)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(reader(root, skip=True).photos(split)) == remaining
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        caplog_text = caplog.records[0].getMessage()
        assert "skipped 4 images" in caplog_text
        assert points in caplog_text


@pytest.mark.parametrize("name", ["wflw98", "ytf68"])
def test_reader_refuses_or_skips_missing_images(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch missing listed images that fail in the first epoch instead of at the start."""
    reader = FORMATS[name].read
    FORMATS[name].write(tmp_path)
    listed = reader(tmp_path).photos("test")
    listed[0].path.unlink()
    missing = listed[0].path.relative_to(tmp_path)
    with pytest.raises(
        DatasetError, match=rf"1 of 2 listed images are missing \({missing}\)\. .*data\.skip_unpaired=true"
    ):
        reader(tmp_path).photos("test")
    with caplog.at_level(logging.WARNING):
        assert [photo.path for photo in reader(tmp_path, skip=True).photos("test")] == [listed[1].path]
    assert "skipped 1 of 2 listed images" in caplog.text
    listed[1].path.unlink()
    with pytest.raises(DatasetError, match=r"2 of 2 listed images are missing .*, and no photo is complete"):
        reader(tmp_path, skip=True).photos("test")


# WFLW


def test_wflw_groups_the_faces_of_a_photo(tmp_path: Path) -> None:
    """Would catch one photo per face, flags in another order, or the rectangle of another face."""
    write_wflw(tmp_path)
    photos = wflw(tmp_path).photos("test")
    assert [photo.path.name for photo in photos] == ["a.jpg", "b.jpg"]
    first, second = photos[0].faces
    assert (first.tags, second.tags) == ({"pose", "blur"}, {"expression", "illumination", "makeup", "occlusion"})
    assert photos[1].faces[0].tags == frozenset()
    assert first.box.tolist() == [10, 20, 110, 140]
    np.testing.assert_allclose(second.points, some_points(WFLW98, 102), atol=1e-4)


def test_wflw_draws_val_from_train_by_name(tmp_path: Path) -> None:
    """Would catch a val split that changes with the machine or the order of the list, or that includes test photos."""
    write_wflw(tmp_path)
    val = {photo.path.name for photo in wflw(tmp_path).photos("val")}
    assert val == {f"{i}.jpg" for i in (1, 2, 7, 8, 9, 12, 19, 27, 28, 30, 33)}
    path = tmp_path / WFLW_LISTS / "list_98pt_rect_attr_train.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert {photo.path.name for photo in wflw(tmp_path).photos("val")} == val
    assert len(wflw(tmp_path, val_share=0).photos("train")) == 40
    assert wflw(tmp_path, val_share=0).photos("val") == [], "val_share=0 gives an empty val split"
    with pytest.raises(DatasetError, match=r"the split 'val' is empty with val_share=1e-06"):
        wflw(tmp_path, val_share=1e-6).photos("val")


def test_wflw_reads_a_test_only_copy(tmp_path: Path) -> None:
    """Would catch a test-only copy that fails with a bare FileNotFoundError."""
    write_wflw(tmp_path)
    (tmp_path / WFLW_LISTS / "list_98pt_rect_attr_train.txt").unlink()
    for split in ("train", "val"):
        with pytest.raises(
            DatasetError, match=rf"attr_train\.txt does not exist, so there is no split '{split}'.* test$"
        ):
            wflw(tmp_path).photos(split)
    assert num_faces(wflw(tmp_path).photos("all")) == 3


def test_wflw_refuses_malformed_lines(tmp_path: Path) -> None:
    """Would catch the list of a test subset read as the full list, and invalid flags."""
    write_wflw(tmp_path)
    path = tmp_path / WFLW_LISTS / "list_98pt_rect_attr_test.txt"
    path.write_text(f"{flat(some_points(WFLW98), ' ')} 1--Handshaking/a.jpg\n")
    with pytest.raises(DatasetError, match=r"attr_test\.txt, line 1: found 196 values, expected 206"):
        wflw(tmp_path).photos("test")
    path.write_text(wflw_line("1--Handshaking/a.jpg", 0) + wflw_line("1--Handshaking/b.jpg", 0, "0 0 2 0 0 0"))
    with pytest.raises(DatasetError, match=r"attr_test\.txt, line 2: the flags must be 0 or 1"):
        wflw(tmp_path).photos("test")


# YouTube Faces


def test_ytf_splits_by_person_over_both_lists(tmp_path: Path) -> None:
    """Would catch the published split, which shares people, or another key of a person, which changes the splits."""
    write_ytf(tmp_path)
    where = {
        split: {str(photo.path.relative_to(tmp_path)) for photo in ytf(tmp_path).photos(split)}
        for split in ("train", "val", "test")
    }
    assert where == {
        "train": {f"training/{TRAIN_PERSON}_21.jpg", f"test/{TRAIN_PERSON}_21.jpg"},
        "val": {f"training/{VAL_PERSON}_00.jpg"},
        "test": {f"training/{TEST_PERSON}_10.jpg", f"test/{TEST_PERSON}_11.jpg"},
    }


def test_ytf_refuses_malformed_files(tmp_path: Path) -> None:
    """Would catch a first face read as a header, a file without a person, or one of the two .csv files missing."""
    write_ytf(tmp_path)
    path = tmp_path / "test_frames_keypoints.csv"
    text = path.read_text()
    path.write_text(text.partition("\n")[2])
    with pytest.raises(DatasetError, match=r"test_frames_keypoints\.csv, line 1: expected a header"):
        ytf(tmp_path).photos("train")
    path.write_text(text.replace("_11.jpg", ".jpg"))
    with pytest.raises(DatasetError, match=r"line 3: 'Ben_Example\.jpg' is not Person_NN\.jpg"):
        ytf(tmp_path).photos("train")
    path.unlink()
    with pytest.raises(DatasetError, match=r"expected training_frames_keypoints\.csv and test_frames_keypoints\.csv"):
        ytf(tmp_path).photos("train")


# Folder


def test_folder_reads_txt_and_pts(tmp_path: Path) -> None:
    """Would catch a count line read as a point, a .pts shifted by a pixel, or an error at a BOM or Windows line end."""
    points = some_points(IBUG68)
    files = {
        "plain.txt": pairs(points),
        "counted.txt": f"{len(points)}\n{pairs(points)}",
        "windows.txt": "\ufeff" + pairs(points).replace("\n", "\r\n") + "\r\n",
        "shifted.pts": pts(points + 1),
        "spaced.pts": pts(points + 1).replace("n_points:  68", "n_points: 68").replace("\n", " \n"),
    }
    for name, text in files.items():
        write(tmp_path / name, text)
        image(tmp_path / f"{Path(name).stem}.jpg")
    photos = folder(tmp_path).photos("all")
    assert len(photos) == len(files)
    for photo in photos:
        np.testing.assert_allclose(photo.faces[0].points, points, atol=1e-4, err_msg=photo.path.name)
    for photo in folder(tmp_path, pts_origin=0).photos("all"):
        shift = photo.path.stem in ("shifted", "spaced")
        np.testing.assert_allclose(photo.faces[0].points, points + shift, atol=1e-4, err_msg=photo.path.name)


def test_folder_finds_points_beside_or_in_landmarks(tmp_path: Path) -> None:
    """Would catch a common arrangement of images and points that is not found."""
    arrangements = (
        ("a.jpg", "a.txt"),
        ("b.jpg", "landmarks/b.txt"),
        ("images/c.jpg", "landmarks/c.txt"),
        ("helen/trainset/d.jpg", "helen/trainset/d.pts"),
        ("images/afw/e.f.jpg", "landmarks/afw/e.f.txt"),
    )
    for photo, points in arrangements:
        image(tmp_path / photo)
        text = pairs(some_points(IBUG68))
        write(tmp_path / points, pts(some_points(IBUG68)) if points.endswith(".pts") else text)
    image(tmp_path / ".thumbnails" / "a.jpg")
    image(tmp_path / "._a.jpg")
    write(tmp_path / "LICENSE.md", "free")
    assert [photo.path.name for photo in folder(tmp_path).photos("all")] == [
        "a.jpg",
        "e.f.jpg",
        "b.jpg",
        "c.jpg",
        "d.jpg",
    ]


def test_folder_refuses_ambiguous_files(tmp_path: Path) -> None:
    """Would catch an arbitrary choice between two files of one name, and ignored files outside the split folders."""
    write_folder_of_splits(tmp_path)
    image(tmp_path / "train" / "images" / "0.png")
    with pytest.raises(DatasetError, match=r"0\.(jpg|png) and .*0\.(jpg|png) have the same name"):
        folder(tmp_path).photos("train")
    (tmp_path / "train" / "images" / "0.png").unlink()
    image(tmp_path / "others" / "x.jpg")
    with pytest.raises(
        DatasetError,
        match=r"1 images or files of points are outside test, train, .* others/x; .*'data\.splits=\{others: train\}'",
    ):
        folder(tmp_path).photos("train")


def test_folder_draws_stable_splits_and_uses_split_folders(tmp_path: Path) -> None:
    """Would catch splits that change when photos are added, a test folder that is split, or an unused val folder."""
    write_folder(tmp_path / "flat")
    before = {split: {photo.path for photo in folder(tmp_path / "flat").photos(split)} for split in SPLITS}
    image(tmp_path / "flat" / "new.jpg")
    write(tmp_path / "flat" / "new.txt", pairs(some_points(IBUG68)))
    after = {split: {photo.path for photo in folder(tmp_path / "flat").photos(split)} for split in SPLITS}
    assert all(before[split] <= after[split] for split in SPLITS)

    write_folder_of_splits(tmp_path / "parts")
    assert {photo.path.parts[-3] for photo in folder(tmp_path / "parts").photos("val")} == {"train"}
    assert len(folder(tmp_path / "parts").photos("test")) == 2
    image(tmp_path / "parts" / "val" / "images" / "x.jpg")
    write(tmp_path / "parts" / "val" / "landmarks" / "x.txt", pairs(some_points(IBUG68)))
    assert [photo.path.name for photo in folder(tmp_path / "parts").photos("val")] == ["x.jpg"]
    assert len(folder(tmp_path / "parts").photos("train")) == 40
    shutil.rmtree(tmp_path / "parts" / "test")
    with pytest.raises(DatasetError, match="the split 'test' has no photo; there are photos in train, val"):
        folder(tmp_path / "parts").photos("test")


def test_folder_refuses_a_malformed_pts(tmp_path: Path) -> None:
    """Would catch a .pts without braces or with fewer points than its header declares."""
    image(tmp_path / "a.jpg")
    path = tmp_path / "a.pts"
    path.write_text(pairs(some_points(IBUG68)))
    with pytest.raises(DatasetError, match=r"a\.pts: not a \.pts file"):
        folder(tmp_path).photos("all")
    path.write_text(pts(some_points(IBUG68)).replace("\n}", "\n1 x\n}"))
    with pytest.raises(DatasetError, match=r"a\.pts, line 72: 'x' is not a number"):
        folder(tmp_path).photos("all")
    lines = pts(some_points(IBUG68)).splitlines()
    path.write_text("\n".join([*lines[:-2], "}"]))
    with pytest.raises(DatasetError, match=r"a\.pts, line 71: expected the 68 points of .*, found 67"):
        folder(tmp_path).photos("all")


# Real data


@pytest.mark.parametrize(
    ("name", "split", "photos", "faces"),
    [
        ("ytf68", "test", 452, 452),
        ("ytf68", "val", 316, 316),
        ("ytf68", "all", 2958 + 658, 2958 + 658),
        ("frl106", "train", 142, 142),
        ("frl106", "val", 20, 20),
        ("frl106", "test", 20, 20),
        ("lisa106", "test", 4, 4),
        ("frl98", "test", 20, 20),
        ("frl98", "all", 182, 182),
        ("WFLW", "test", 88, 102),
    ],
)
def test_reader_counts_on_real_data(name: str, split: Split, photos: int, faces: int) -> None:
    """Would catch a line or file that is skipped or read twice, and a split by another rule."""
    read = REAL[name][0](face_data(name)).photos(split)
    assert (len(read), num_faces(read)) == (photos, faces)


def test_ytf_keeps_each_person_in_one_split() -> None:
    """Would catch frames of one clip in both training and test data."""
    reader = ytf(face_data("ytf68"))
    people = [
        {photo.path.stem.rpartition("_")[0] for photo in reader.photos(split)} for split in ("train", "val", "test")
    ]
    assert sum(map(len, people)) == len(set().union(*people)) == 297


def test_wflw_tags_match_the_official_subsets() -> None:
    """Would catch flags read in another order than the subsets of the paper."""
    root = face_data("WFLW")
    faces = [face for photo in wflw(root).photos("test") for face in photo.faces]
    for tag in WFLW.tags:
        file = root / "WFLW_annotations" / "list_98pt_test" / f"list_98pt_test_{tag.replace('pose', 'largepose')}.txt"
        official = np.array([line.split()[:-1] for line in file.read_text().splitlines()], np.float32)
        tagged = {face.points.tobytes() for face in faces if tag in face.tags}
        assert {row.tobytes() for row in official} == tagged, tag
        assert len(official) == len(tagged)


# Custom data with special codes, units and names


MISSING = {"zero": 0.0, "minus_one": -1.0}


def write_one(root: Path, points: Array, name: str = "a", size: tuple[int, int] = (200, 100)) -> None:
    """Write one black photo and its points."""
    cv2.imwrite(str(root / f"{name}.png"), np.zeros((size[1], size[0], 3), np.uint8))
    write(root / f"{name}.txt", pairs(points))


def random_face() -> Array:
    return np.random.default_rng(5).uniform(20, 90, (IBUG68.num_points, 2)).round(1)


@pytest.mark.parametrize("code", MISSING)
def test_folder_refuses_or_reads_codes_of_missing_points(code: str, tmp_path: Path) -> None:
    """Would catch points without annotation read as points in the photo's corner, without a message."""
    points = random_face()
    points[:5] = MISSING[code]
    write_one(tmp_path, points)
    with pytest.raises(DatasetError, match=rf"a\.txt: 5 points at exactly .*data\.missing=\[{code}\]"):
        folder(tmp_path).photos("all")
    ((face,),) = (photo.faces for photo in folder(tmp_path, missing=[code]).photos("all"))
    assert np.isnan(face.points[:5]).all() and not face.visible[:5].any()
    np.testing.assert_allclose(face.points[5:], points[5:], atol=1e-4)
    assert face.visible[5:].all()


def test_folder_reads_negated_points_as_hidden(tmp_path: Path) -> None:
    """Would catch hidden points of MERL-RAV read as positions far left of the photo."""
    points = random_face()
    signed = points.copy()
    signed[:5] *= -1
    write_one(tmp_path, signed)
    with pytest.raises(DatasetError, match=r"a\.txt: 5 points have both .*data\.missing=\[negated\]"):
        folder(tmp_path).photos("all")
    ((face,),) = (photo.faces for photo in folder(tmp_path, missing=["negated"]).photos("all"))
    np.testing.assert_allclose(face.points, points, atol=1e-4)
    assert not face.visible[:5].any() and face.visible[5:].all()


def test_folder_accepts_usual_labels_that_resemble_codes(tmp_path: Path) -> None:
    """Would catch closed lips in whole pixels, or a face beyond the photo's corner, refused as codes."""
    points = random_face().round()
    points[60:68] = points[60]
    points[:4] = [[-3, -2], [-8, -6], [0, 0], [0, 0]]
    points[4:] -= 20
    write_one(tmp_path, points)
    ((face,),) = (photo.faces for photo in folder(tmp_path).photos("all"))
    np.testing.assert_array_equal(face.points, points.astype(np.float32))


def test_folder_refuses_or_reads_fractions(tmp_path: Path) -> None:
    """Would catch fractions read as pixels: a training that finishes with `-` for every number."""
    points = random_face()
    for normalised in ((points - points.min(0)) / np.ptp(points, axis=0), 2 * points / [200, 100] - 1):
        write_one(tmp_path, normalised)
        with pytest.raises(DatasetError, match=r"pixels large; data\.units=fraction"):
            folder(tmp_path).photos("all")
    write_one(tmp_path, (points + 0.5) / [200, 100])
    with pytest.raises(DatasetError, match=r"a\.txt: the face is 0\.\d+ x 0\.\d+ pixels large; data\.units=fraction"):
        folder(tmp_path).photos("all")
    ((face,),) = (photo.faces for photo in folder(tmp_path, units="fraction").photos("all"))
    np.testing.assert_allclose(face.points, points, atol=0.2)  # pairs() writes few digits
    write_one(tmp_path, points)
    with pytest.raises(DatasetError, match=r"a\.txt: numbers up to .* are not fractions; use data\.units=pixels"):
        folder(tmp_path, units="fraction").photos("all")


@pytest.mark.parametrize("reader", ["lapa", "wflw", "ytf"])
def test_published_readers_refuse_codes_and_fractions(reader: str, tmp_path: Path) -> None:
    """Would catch the same codes and fractions in custom data in the folders of a published set."""
    changes = {"codes": lambda p: np.where(np.arange(len(p))[:, None] < 4, -1, p), "fractions": lambda p: p / 500}
    for kind, change in changes.items():
        root = tmp_path / kind
        if reader == "lapa":
            image(root / "train" / "images" / "a.JPG")
            write(root / "train" / "landmarks" / "a.txt", f"106\n{pairs(change(some_points(LAPA106)))}")
            data: Any = lapa(root)
        elif reader == "wflw":
            numbers = flat(change(some_points(WFLW98)), " ")
            line = f"{numbers} 10 20 110 140 0 0 0 0 0 0 a.jpg\n"
            write(root / WFLW_LISTS / "list_98pt_rect_attr_train.txt", line)
            data = wflw(root)
        else:
            header = "".join(f",{i}" for i in range(2 * IBUG68.num_points)) + "\n"
            for part in ("training", "test"):
                line = f"Some_One_00.jpg,{flat(change(some_points(IBUG68)), ',')}\n"
                write(root / f"{part}_frames_keypoints.csv", header + line)
            data = ytf(root)
        with pytest.raises(DatasetError, match=r"data=folder and data\.(missing|units)"):
            data.photos("all")


def test_lapa_reads_endings_in_any_case(tmp_path: Path) -> None:
    """Would catch `a.JPG` beside `a.txt` reported as points without an image."""
    image(tmp_path / "train" / "images" / "a.JPG")
    write(tmp_path / "train" / "landmarks" / "a.txt", f"106\n{pairs(some_points(LAPA106))}")
    assert [photo.path.name for photo in lapa(tmp_path).photos("train")] == ["a.JPG"]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "Val", "Test"),
        ("training", "validation", "testing"),
        ("trainset", "valset", "testset"),
        ("TRAIN/images", "Valid/images", "TEST/images"),
        ("helen/trainset", "helen/valid", "helen/testset"),
        ("mine/a/Trainset/x", "other/VAL/y", "TestSet"),
    ],
)
def test_folder_accepts_usual_names_of_splits(train: str, val: str, test: str, tmp_path: Path) -> None:
    """Would catch folders of splits that are pooled and split again, so that test faces are trained on."""
    for split, subfolder in (("train", train), ("val", val), ("test", test)):
        (tmp_path / subfolder).mkdir(parents=True)
        write_one(tmp_path / subfolder, random_face(), split)
    for split in ("train", "val", "test"):
        assert [photo.path.stem for photo in folder(tmp_path).photos(split)] == [split]  # type: ignore[arg-type]


def test_folder_refuses_unclear_names_of_splits(tmp_path: Path) -> None:
    """Would catch unknown names of split folders that are pooled, or names that only contain such a word."""
    for name in ("my_train", "test-2", "contest", "valentin"):
        (tmp_path / name).mkdir()
        write_one(tmp_path / name, random_face(), name)
    with pytest.raises(DatasetError, match=r"my_train, test-2 look like splits .*'data\.splits=\{my_train: train\}'"):
        folder(tmp_path).photos("train")
    splits = {"my_train": "train", "TEST-2": "test", "contest": "val", "valentin": "train"}
    read = folder(tmp_path, splits=splits)
    assert [photo.path.stem for photo in read.photos("train")] == ["my_train", "valentin"]
    assert [photo.path.stem for photo in read.photos("test")] == ["test-2"]
    with pytest.raises(ConfigError, match=r"splits: 'trian' is not a split"):
        folder(tmp_path, splits={"my_train": "trian"})
    (tmp_path / "train" / "test").mkdir(parents=True)
    write_one(tmp_path / "train" / "test", random_face(), "both")
    with pytest.raises(DatasetError, match="train/test/both is in folders of two splits, test and train"):
        folder(tmp_path, splits=splits).photos("train")


def test_folder_logs_drawn_splits_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch drawn splits that are not logged, are logged for each split, or without their rule."""
    write_folder(tmp_path)
    caplog.set_level("INFO")
    read = folder(tmp_path)
    counts = {split: len(read.photos(split)) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    (line,) = [record.message for record in caplog.records if "drawn" in record.message]
    assert line.startswith(
        f"mine: 40 photos: {counts['train']} train, {counts['val']} val, {counts['test']} test, drawn"
    )
    assert "data.test_share=0.25" in line


def test_folder_refuses_an_empty_test_or_val_split(tmp_path: Path) -> None:
    """Would catch a missing split that is reported only after the training, or without a remedy."""
    (tmp_path / "train").mkdir()
    write_one(tmp_path / "train", random_face())
    with pytest.raises(
        DatasetError, match="the split 'test' has no photo; there are photos in train; test=false trains"
    ):
        folder(tmp_path, val_share=0.0).photos("test")
    with pytest.raises(DatasetError, match=r"data\.val_share=0\.01 is too small for so few photos"):
        folder(tmp_path, val_share=0.01).photos("val")
    assert folder(tmp_path, val_share=0.0).photos("val") == []


def test_folder_reads_linked_photos_once(tmp_path: Path) -> None:
    """Would catch a loop of links that turns 2 photos into 80, spread over train and test."""
    for name in "ab":
        write_one(tmp_path, random_face(), name)
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "copy").symlink_to(tmp_path, target_is_directory=True)
    for ending in ("png", "txt"):
        (tmp_path / f"0.{ending}").symlink_to(tmp_path / f"a.{ending}")
    assert [photo.path.name for photo in folder(tmp_path).photos("all")] == ["a.png", "b.png"]


def test_folder_reads_splits_made_of_links(tmp_path: Path) -> None:
    """Would catch lost photos in splits of links to one folder, or a photo that is in train and in test."""
    pool, root = tmp_path / "pool", tmp_path / "set"
    pool.mkdir()
    for name, split in (("a", "train"), ("b", "train"), ("c", "test")):
        write_one(pool, random_face(), name)
        (root / split).mkdir(parents=True, exist_ok=True)
        for ending in ("png", "txt"):
            (root / split / f"{name}.{ending}").symlink_to(pool / f"{name}.{ending}")
    read = folder(root, val_share=0.0)
    assert [photo.path for photo in read.photos("train")] == [root / "train" / "a.png", root / "train" / "b.png"]
    assert [photo.path for photo in read.photos("test")] == [root / "test" / "c.png"]
    for ending in ("png", "txt"):
        (root / "test" / f"a.{ending}").symlink_to(pool / f"a.{ending}")
    with pytest.raises(
        DatasetError, match=r"test/a\.png and .*train/a\.png are one photo, in the splits test and train"
    ):
        folder(root, val_share=0.0).photos("train")


def test_folder_accepts_double_endings(tmp_path: Path) -> None:
    """Would catch `a.jpg.txt`, which several label tools write, reported as points without an image."""
    write_one(tmp_path, random_face())
    (tmp_path / "a.txt").rename(tmp_path / "a.png.txt")
    assert len(folder(tmp_path).photos("all")) == 1
    write_one(tmp_path, random_face(), "b.jpg")
    assert len(folder(tmp_path).photos("all")) == 2
    write(tmp_path / "a.txt", pairs(random_face()))
    with pytest.raises(DatasetError, match="a has two files of points"):
        folder(tmp_path).photos("all")


@pytest.mark.parametrize("raw", [b"\xd5\xd5\xc6\xac", b"caf\xe9"])
def test_folder_accepts_names_that_are_not_utf8(raw: bytes, tmp_path: Path) -> None:
    """Would catch a zip from another system whose names fail the training after its last epoch."""
    write_one(tmp_path, random_face())
    for ending in ("png", "txt"):
        (tmp_path / f"a.{ending}").rename(tmp_path / os.fsdecode(raw + f".{ending}".encode()))
    (photo,) = folder(tmp_path).photos("all")
    assert os.fsencode(photo.path.name) == raw + b".png"
    folder(tmp_path).photos("train" if hash_fraction(photo.path.stem) >= 0.5 else "all")


@pytest.mark.parametrize("mark", [1, 3, 6, 8])
def test_folder_applies_the_orientation_tag(mark: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch points made on the upright photo applied to the pixels as the camera stored them."""
    caplog.set_level("INFO")
    shown = np.zeros((100, 200, 3), np.uint8)
    shown[30:34, 150:154] = 255  # a bright square centred at (151.5, 31.5)
    turned = {3: PIL.Image.Transpose.ROTATE_180, 6: PIL.Image.Transpose.ROTATE_90, 8: PIL.Image.Transpose.ROTATE_270}
    stored = PIL.Image.fromarray(shown)
    stored = stored.transpose(turned[mark]) if mark in turned else stored
    exif = PIL.Image.Exif()
    exif[0x0112] = mark
    stored.save(tmp_path / "a.jpg", quality=98, exif=exif.tobytes())
    write(tmp_path / "a.txt", pairs(np.tile([[141.5, 21.5], [161.5, 41.5]], (34, 1))))
    (photo,) = folder(tmp_path).photos("all")
    assert photo.orientation == "shown"
    assert ("1 of 1 photos have an orientation tag" in caplog.text) == (mark != 1)
    view = Crop(20, 1.0, True, (0.0, 0.0), "points")
    crop = PhotoFile(photo.path, photo.orientation).cut_out(
        view.matrix(view.reference_box(photo.faces[0], np.zeros(4))), 20
    )
    centre = np.argwhere(crop[..., 0] > 128).mean(axis=0)
    np.testing.assert_allclose(centre, [9.5, 9.5], atol=0.6)
    (as_stored,) = folder(tmp_path, orientation="stored").photos("all")
    assert as_stored.orientation == "stored"


def test_folder_refuses_unknown_codes(tmp_path: Path) -> None:
    """Would catch -999, or another code of a tool for a point without annotation, read as a position."""
    points = random_face()
    points[:3] = -999
    write_one(tmp_path, points)
    with pytest.raises(DatasetError, match=r"a\.txt: 3 points at exactly -999 -999, far from the others.*nan nan"):
        folder(tmp_path).photos("all")


def test_readers_pair_names_across_unicode_forms(tmp_path: Path) -> None:
    """Would catch `é` as one character and as two (macOS) reported as two different photos."""
    composed, decomposed = "\u00e9", "e\u0301"
    write_one(tmp_path, random_face())
    for ending, name in (("png", composed), ("txt", decomposed)):
        (tmp_path / f"a.{ending}").rename(tmp_path / f"{name}.{ending}")
    assert len(folder(tmp_path).photos("all")) == 1
    image(tmp_path / "set" / "train" / "images" / f"{decomposed}.jpg")
    write(tmp_path / "set" / "train" / "landmarks" / f"{composed}.txt", f"106\n{pairs(some_points(LAPA106))}")
    assert len(lapa(tmp_path / "set").photos("train")) == 1
