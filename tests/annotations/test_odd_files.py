"""Tests of damaged files made by hypothesis: a file is read, or refused with a FacelabError."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from formats.folder import read as folder
from formats.lapa106 import read as lapa
from formats.wflw98 import read as wflw
from formats.ytf68 import read as ytf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from writing import write

from facelab.annotations.points_file import read_pts, read_txt
from facelab.errors import FacelabError
from facelab.faces.crop import Crop
from facelab.faces.image import PhotoFile, image_size, read_image
from facelab.faces.layouts import FIVE5
from facelab.inference.boxes_file import read_boxes
from facelab.inference.landmarks import cut_photo

FEW, MANY = 30, 4000
"""Numbers of examples of a fast and of a slow test."""
QUICK = settings(
    max_examples=FEW,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
    database=None,
)
LONG = settings(QUICK, max_examples=MANY)
ODD = st.sampled_from(
    ["nan", "inf", "-inf", "1e39", "-1", "0", "1_0", "0x1", "", "½", "１２", "\x00", "{", "}", "-0.0", "1e-320"]
)
NUMBER = st.one_of(ODD, st.floats(width=32).map(str), st.integers(-(10**12), 10**12).map(str), st.text(max_size=5))
LINE = st.lists(NUMBER, max_size=4).map(" ".join)
TEXT = st.one_of(st.lists(LINE, max_size=9).map("\n".join), st.text(max_size=200))
POINTS = st.lists(st.tuples(NUMBER, NUMBER).map(" ".join), min_size=5, max_size=5).map("\n".join)


def read_or_none(read: Callable[[], Any]) -> Any:
    """Return the result of a read, or None after a FacelabError with a printable message."""
    try:
        return read()
    except FacelabError as error:
        str(error).encode()
        return None


def check_txt(path: Path, text: str) -> None:
    """Check the points that a text gives as .txt and as .pts."""
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    for read in (read_txt, lambda *given, **named: read_pts(*given, origin=1, **named)):
        points = read_or_none(lambda read=read: read(path, FIVE5, allow_nan=True))
        if points is not None:
            assert points.shape == (5, 2) and not np.isinf(points).any()
            assert (np.isnan(points).all(axis=1) == np.isnan(points).any(axis=1)).all()


def check_boxes(path: Path, text: str) -> None:
    """Check the boxes that a text gives."""
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    boxes = read_or_none(lambda: read_boxes(path))
    for box in [box for each in (boxes or {}).values() for box in each]:
        assert box.shape == (4,) and np.isfinite(box).all()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
BOX_LINES = st.lists(st.tuples(st.text(max_size=6), NUMBER, NUMBER, NUMBER, NUMBER).map(",".join), max_size=4)


@QUICK
@given(text=st.one_of(TEXT, POINTS, POINTS.map("version: 1\nn_points: 5\n{{\n{}\n}}".format)))
def test_points_files_are_read_or_refused(text: str, tmp_path: Path) -> None:
    """Would catch a traceback for a file of points, or points with one missing coordinate."""
    check_txt(tmp_path / "a.txt", text)


@QUICK
@given(text=st.one_of(TEXT, BOX_LINES.map(lambda lines: "\n".join(["image,x0,y0,x1,y1", *lines]))))
def test_read_boxes_reads_or_refuses_csv(text: str, tmp_path: Path) -> None:
    """Would catch a traceback for a CSV file of boxes, or boxes that are not finite."""
    check_boxes(tmp_path / "a.csv", text)


@QUICK
@given(
    text=st.one_of(
        TEXT, JSON.map(json.dumps), st.just("[" * 100_000), st.just('{"a": [[0, 0, ' + "9" * 5000 + ", 1]]}")
    )
)
def test_read_boxes_reads_or_refuses_json(text: str, tmp_path: Path) -> None:
    """Would catch a traceback for deeply nested lists, or for numbers of thousands of digits."""
    check_boxes(tmp_path / "a.json", text)


@QUICK
@given(text=TEXT, name=st.sampled_from(["list", "keypoints", "folder", "lapa"]))
def test_readers_read_or_refuse_lists(text: str, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Would catch a traceback for the list of a published set, or for a set with one damaged file."""
    root = tmp_path_factory.mktemp("set")
    if name == "list":
        write(root / "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt", text)
        read_or_none(lambda: wflw(root).photos("all"))
    elif name == "keypoints":
        for part in ("training", "test"):
            write(root / f"{part}_frames_keypoints.csv", text)
        read_or_none(lambda: ytf(root).photos("all"))
    elif name == "folder":
        write(root / "a.txt", text)
        write(root / "a.png", "no image")
        for units in ("pixels", "fraction"):
            read_or_none(lambda units=units: folder(root, layout=FIVE5, units=units).photos("all"))
    else:
        write(root / "train" / "landmarks" / "a.txt", text)
        write(root / "train" / "images" / "a.jpg", "no image")
        read_or_none(lambda: lapa(root).photos("all"))


def encoded(ending: str) -> bytes:
    """Encode a picture of 40 x 30 pixels."""
    image = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3)
    _, data = cv2.imencode(ending, image)
    return data.tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Build a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a PNG with an optional chunk before its pixels."""
    png = encoded(".png")
    return png[:33] + chunk(kind, content) + png[33:]


def jpeg_with_orientation(tag: int) -> bytes:
    """Return a JPEG with an orientation tag."""
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = tag
    Image.new("RGB", (40, 30)).save(stream, "JPEG", exif=exif.tobytes())
    return stream.getvalue()


FILES = [*map(encoded, (".jpg", ".png", ".bmp", ".webp", ".tiff")), jpeg_with_orientation(6)]
CHUNKS = st.tuples(
    st.sampled_from([b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"tRNS", b"pHYs", b"gAMA", b"acTL", b"cHRM"]),
    st.binary(max_size=40),
).map(lambda pair: with_chunk(*pair))


@st.composite
def damaged(draw: Any) -> bytes:
    """Return a photo with some bytes changed, removed or added."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, len(data) - 1))
        data[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
        if not data:
            break
    return bytes(data)


def check_image(path: Path, data: bytes) -> None:
    """Check size, pixels and crops of a photo that may be damaged."""
    path.write_bytes(data)
    for read in (image_size, read_image):
        read_or_none(lambda read=read: read(path))
    matrix = Crop(16, 1.0, True, (0.0, 0.0), "given").matrix(np.array([2.0, 2, 20, 20]))
    for orientation in ("shown", "stored"):
        crop = read_or_none(lambda orientation=orientation: PhotoFile(path, orientation).cut_out(matrix, 16))
        assert crop is None or (crop.shape == (16, 16, 3) and crop.dtype == np.uint8)


@QUICK
@given(data=st.one_of(st.binary(max_size=80), damaged(), CHUNKS))
def test_images_are_read_or_refused(data: bytes, tmp_path: Path) -> None:
    """Would catch a traceback for a downloaded file, which would stop a training or a prediction."""
    check_image(tmp_path / "a.jpg", data)


SIDE = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(-50, 90), st.sampled_from([1e38, -1e38, 1e7, 0.5])
)


@QUICK
@given(box=st.tuples(SIDE, SIDE, SIDE, SIDE), scale=st.sampled_from([0.01, 1.0, 1.3]))
def test_cut_photo_accepts_boxes_of_any_size(box: tuple[float, ...], scale: float, tmp_path: Path) -> None:
    """Would catch one extreme box that loses the good faces of its photo, or that needs gigabytes."""
    path = tmp_path / "a.png"
    path.write_bytes(FILES[1])
    boxes = {"a.png": [np.array(box), np.array([2.0, 2, 20, 20])]}
    cuts = cut_photo("a.png", path, boxes, Crop(16, scale, False, (0.0, 0.0), "given"), fractions=False)
    assert 1 in cuts.faces
    assert [skip.face for skip in cuts.skipped] in ([], [0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "check", "name"),
    [
        (st.one_of(TEXT, POINTS), check_txt, "a.txt"),
        (st.one_of(TEXT, BOX_LINES.map(lambda lines: "\n".join(["image,x0,y0,x1,y1", *lines]))), check_boxes, "a.csv"),
        (st.one_of(TEXT, JSON.map(json.dumps)), check_boxes, "a.json"),
        (st.one_of(st.binary(max_size=80), damaged(), CHUNKS), check_image, "a.jpg"),
    ],
    ids=["points", "boxes csv", "boxes json", "photos"],
)
def test_many_damaged_files_are_read_or_refused(
    strategy: Any, check: Callable[[Path, Any], None], name: str, tmp_path: Path
) -> None:
    """Would catch rarer failures of the fast tests above, with many more examples."""

    @LONG
    @given(content=strategy)
    def run(content: Any) -> None:
        check(tmp_path / name, content)

    run()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_image_functions_refuse_what_is_not_a_regular_file(make: Callable[[Path], Any], tmp_path: Path) -> None:
    """Would catch waiting for a pipe, and reading a device without end."""
    make(tmp_path / "a.jpg")
    for read in (read_image, image_size):
        with pytest.raises(FacelabError, match=r"not a regular file|Is a directory"):
            read(tmp_path / "a.jpg")
