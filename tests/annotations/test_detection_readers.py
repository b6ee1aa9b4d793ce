"""Tests of the readers of detection datasets: what they read, and mistakes in custom files."""

import logging
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import face_data
from formats.voc import annotation, thing
from formats.voc import read as voc
from formats.voc import write as write_voc
from formats.wider_face import CROWD, EMPTY, POINTS, TRAIN, TRAIN_LABELS, labels, official, write_lists
from formats.wider_face import read as wider
from formats.wider_face import write as write_wider
from writing import image
from writing import write as write_file

from facelab.annotations.points_file import hash_fraction
from facelab.annotations.voc import VOC
from facelab.annotations.wider_face import WiderFace
from facelab.errors import ConfigError, DatasetError
from facelab.faces.boxes import area
from facelab.faces.face import Face
from facelab.faces.layouts import FIVE5, IBUG68


def faces_by_name(reader: WiderFace, split: str) -> dict[str, tuple[Face, ...]]:
    return {"/".join(photo.path.parts[-2:]): photo.faces for photo in reader.photos(split)}  # type: ignore[arg-type]


# WIDER FACE


def test_wider_reads_every_row_in_its_order(tmp_path: Path) -> None:
    """Would catch a dropped row, after which the lists of the evaluation name other faces, and shifted attributes."""
    write_wider(tmp_path)
    photos = faces_by_name(wider(tmp_path), "test")
    assert [*photos] == ["1--Handshaking/crowd.jpg", "1--Handshaking/none.jpg", "2--Show/one.jpg"]
    assert [face.tags for face in photos["1--Handshaking/crowd.jpg"]] == [
        {"medium", "hard"},
        {"blur_heavy"},
        {"blur_normal", "expression", "illumination", "invalid", "occlusion_heavy", "pose", "hard"},
    ]
    (none,) = photos["1--Handshaking/none.jpg"]
    assert area(none.box) == 0 and none.tags == frozenset()
    assert photos["2--Show/one.jpg"][0].tags == frozenset()


def test_wider_reads_points_of_the_face_with_the_same_box(tmp_path: Path) -> None:
    """Would catch points of another face where label.txt has fewer rows, a lost half pixel, and hidden points."""
    write_wider(tmp_path)
    train = {"0--Parade/1.jpg": [[50, 60, 20, 20, 0, 0, 0, 0, 0, 0], [1, 2, 31, 40, 0, 0, 0, 1, 0, 0]]}
    write_file(tmp_path / TRAIN, official(train))
    write_file(tmp_path / TRAIN_LABELS, labels({"0--Parade/1.jpg": [f"1 2 31 40 {POINTS}", f"7 7 31 40 {POINTS}"]}))
    first, second = faces_by_name(wider(tmp_path, lists=None), "all")["0--Parade/1.jpg"]
    assert np.isnan(first.points).all() and not first.visible.any()
    expected = [[12, 29.5], [21.5, 29.5], [16.5, 39.5], [np.nan, np.nan], [20.5, 50.5]]
    np.testing.assert_array_equal(second.points, np.array(expected, np.float32))
    assert second.visible.tolist() == [True, False, True, False, True] and second.tags == {"invalid"}
    alone = faces_by_name(wider(tmp_path, labels="retinaface", lists=None), "all")["0--Parade/1.jpg"]
    np.testing.assert_array_equal(alone[0].points, second.points)
    assert np.isnan(faces_by_name(wider(tmp_path, labels="official"), "all")["0--Parade/1.jpg"][1].points).all()


def test_wider_warns_about_points_without_a_box(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a label.txt of other boxes, whose points are lost without a word."""
    write_wider(tmp_path)
    text = (tmp_path / TRAIN_LABELS).read_text().replace("3 6 33 40", "3 6 33 41")
    write_file(tmp_path / TRAIN_LABELS, text)
    wider(tmp_path).photos("train")
    assert re.search(r"label\.txt, line 6: points of a face whose box is not in .* \(1 such\)", caplog.text)


def test_wider_cuts_val_from_train_by_photo(tmp_path: Path) -> None:
    """Would catch a val of the official val, which is the test, and a photo in both splits."""
    write_wider(tmp_path)
    reader = wider(tmp_path)
    train, val, every = (faces_by_name(reader, split) for split in ("train", "val", "all"))
    assert all((hash_fraction(name) < 0.25) == (name in val) for name in train | val)
    assert len(train) + len(val) == 41 and len(every) == 44 and not train.keys() & val.keys()
    none = WiderFace("w", str(tmp_path), FIVE5, "official", None, val_share=0, skip_unpaired=False)
    assert len(none.photos("train")) == 41 and none.photos("val") == []


def test_wider_reads_photos_without_faces(tmp_path: Path) -> None:
    """Would catch the name of the next photo read as a row, where a file lacks the rows of zeros."""
    text = (
        "0--Parade/a.jpg\n0\n0--Parade/b.jpg\n0\n0 0 0 0 0 0 0 0 0 0 \n"
        "0--Parade/c.jpg\n1\n9 9 9 9 0 0 0 0 0 0\n0--Parade/d.jpg\n0\n"
    )
    write_file(tmp_path / TRAIN, text)
    for name in "abcd":
        image(tmp_path / "WIDER_train" / "images" / "0--Parade" / f"{name}.jpg")
    photos = faces_by_name(wider(tmp_path, labels="official", lists=None), "all")
    assert {name[-5]: len(faces) for name, faces in photos.items()} == {"a": 0, "b": 1, "c": 1, "d": 0}


ROW = "9 9 20 20 0 0 0 0 0 0\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"e/a.jpg\n1\n{ROW}{ROW}e/b.jpg\n1\n{ROW}",
            r"line 4: expected the name of a photo.* the photo before too small",
        ),
        (f"/e/a.jpg\n1\n{ROW}", r"line 1: the name of a photo must be relative"),
        (f"../e/a.jpg\n1\n{ROW}", r"line 1: the name of a photo must be relative"),
        (f"e/a.jpg\n2\n{ROW}e/b.jpg\n1\n{ROW}", r"line 2: 2 faces of e/a.jpg, but the photo e/b.jpg follows after 1"),
        (f"e/a.jpg\n3\n{ROW}{ROW}", r"line 2: 3 faces of e/a\.jpg, but the file ends after 2"),
        (f"e/a.jpg\n{ROW}", r"line 2: expected the number of faces of e/a\.jpg, found '9 9 20"),
        ("e/a.jpg\n", r"line 2: expected the number of faces of e/a\.jpg, found 'the end of the file'"),
        ("e/a.jpg\n0\n\ne/b.jpg\n0\n", "line 3: found 0 values, expected 10"),
        (f"e/a.jpg\n0\n{ROW}", r"line 3: e/a\.jpg has 0 faces, but a row of one follows"),
        (f"e/a.jpg\n1\n{ROW[:-1]} 7\n", r"line 3: found 11 values, expected 10 \(x y w h, blur, expression"),
        ("e/a.jpg\n1\n9 9 20 20 3 0 0 0 0 0\n", "line 3: blur must be 0 to 2, found 3"),
        ("e/a.jpg\n1\n9 9 20 20 0 0 0 0 1 2\n", "line 3: pose must be 0 to 1, found 2"),
        ("e/a.jpg\n1\n.1 .2 .25 .3 0 0 0 0 0 0\n", r"line 3: the box \[0\.1, 0\.2, 0\.25, 0\.3\] looks like fractions"),
    ],
)
def test_wider_refuses_mistakes_in_the_official_file(text: str, message: str, tmp_path: Path) -> None:
    """Would catch rows that are read as those of another photo, and numbers that are no pixels."""
    write_file(tmp_path / TRAIN, text)
    with pytest.raises(DatasetError, match=r"bbx_gt\.txt, " + message):
        wider(tmp_path, labels="official", lists=None).photos("all")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("e/a.jpg\n9 9 20 20\n", "line 1: expected '# EVENT/NAME.jpg', found 'e/a.jpg'"),
        ("# e/a\n9 9 20 20\n", "line 1: expected the name of a photo"),
        (f"# e/a.jpg\n9 9 20 20 {POINTS} 1\n", "line 2: found 21 values, expected 20"),
        ("# e/a.jpg\n9 9 20 20 1 1 2 2 3 3 4 4 5 5\n", r"line 2: found 14 values, expected 20 .* five times x y flag"),
        (f"# e/a.jpg\n9 9 20 20 {POINTS}\n9 9 20 21\n", "line 3: found 4 values, expected 20 .* as in the row before"),
        (f"# e/a.jpg\n9 9 20 20 {POINTS.replace('1.0', '7.5')}\n", r"line 2: the flags .* found \[0\.0, 7\.5"),
        ("# e/a.jpg\n9 9 20 20" + " .3 .4 0" * 5 + " 1\n", "line 2: the points look like fractions"),
    ],
)
def test_wider_refuses_mistakes_in_label_txt(text: str, message: str, tmp_path: Path) -> None:
    """Would catch points without flags, whose numbers shift, and rows of another width."""
    write_file(tmp_path / TRAIN_LABELS, text)
    with pytest.raises(DatasetError, match=r"label\.txt, " + message):
        wider(tmp_path, labels="retinaface", lists=None).photos("all")


def test_wider_refuses_lists_that_do_not_fit(tmp_path: Path) -> None:
    """Would catch lists of other rows, after which wrong faces count, and a message without the remedy."""
    write_wider(tmp_path)
    kept: dict[str, dict[str, list[int]]] = {"easy": {}, "medium": {}, "hard": {}}
    photos = {"1--Handshaking/crowd.jpg": CROWD, "1--Handshaking/none.jpg": EMPTY, "2--Show/one.jpg": CROWD[1:2]}
    write_lists(tmp_path / "ground_truth", photos, kept)
    with pytest.raises(DatasetError, match=r"val_bbx_gt\.txt, line 11: .*easy_val\.mat has other boxes of .*one\.jpg"):
        wider(tmp_path).photos("test")
    del photos["2--Show/one.jpg"]
    write_lists(tmp_path / "ground_truth", photos, kept)
    with pytest.raises(DatasetError, match=r"easy_val\.mat does not list the photo 2--Show/one\.jpg; .* lists=null"):
        wider(tmp_path).photos("test")
    (tmp_path / "ground_truth" / "wider_easy_val.mat").write_bytes(b"no such file")
    with pytest.raises(DatasetError, match=r"easy_val\.mat cannot be read as a list of WIDER FACE: "):
        wider(tmp_path).photos("test")
    (tmp_path / "ground_truth" / "wider_easy_val.mat").unlink()
    with pytest.raises(DatasetError, match=r"easy_val\.mat does not exist; .* lists=null"):
        wider(tmp_path).photos("test")
    assert len(wider(tmp_path).photos("train")) > 20  # train has no lists
    assert "easy" not in wider(tmp_path, lists=None).tags


def test_wider_refuses_options_that_exclude_each_other(tmp_path: Path) -> None:
    """Would catch lists that are silently not used, and another layout."""
    with pytest.raises(ConfigError, match="lists needs the rows of the official files; set lists=null"):
        wider(tmp_path, labels="retinaface")
    with pytest.raises(ConfigError, match="layout must have the 5 points of five5, found ibug68"):
        WiderFace("w", str(tmp_path), IBUG68, "official", None, 0.1, skip_unpaired=False)
    write_wider(tmp_path)
    (tmp_path / TRAIN_LABELS).unlink()
    with pytest.raises(DatasetError, match=r"train/label\.txt does not exist; .* labels=official"):
        wider(tmp_path).photos("train")
    (tmp_path / TRAIN).unlink()
    with pytest.raises(
        DatasetError, match=r"no split 'train'; train and val are parts of wider_face_train_bbx_gt\.txt"
    ):
        wider(tmp_path).photos("train")


def write_photos(root: Path, rows: list[str], size: tuple[int, int] = (200, 100)) -> None:
    """Write photos of a size with one face each, ``rows`` of an official file."""
    names = [f"e/{i}.jpg" for i in range(len(rows))]
    write_file(root / TRAIN, "".join(f"{name}\n1\n{row}\n" for name, row in zip(names, rows, strict=True)))
    for name in names:
        image(root / "WIDER_train" / "images" / name)
        cv2.imwrite(str(root / "WIDER_train" / "images" / name), np.zeros((size[1], size[0], 3), np.uint8))


def test_wider_refuses_corners_for_sizes(tmp_path: Path) -> None:
    """Would catch a training on boxes that are twice too large, a common mistake in custom files."""
    corners = ["20 30 60 70", "120 20 180 90", "100 60 150 95", "10 10 40 50", "80 50 160 99"]
    write_photos(tmp_path, [f"{box} 0 0 0 0 0 0" for box in corners])
    message = (
        r"line 6: the box ends outside of its photo, like 3 of 5 boxes\. .*probably corners .*; write x y width height"
    )
    with pytest.raises(DatasetError, match=message):
        wider(tmp_path, labels="official", lists=None).photos("all")


def test_wider_warns_about_photos_of_another_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch photos that were made smaller than those that were annotated."""
    sizes = ["20 30 60 40", "120 20 60 60", "100 60 50 30", "80 50 70 40", "10 10 30 40"]
    write_photos(tmp_path, [f"{box} 0 0 0 0 0 0" for box in sizes])
    reader = wider(tmp_path, labels="official", lists=None)
    assert len(reader.photos("all")) == 5 and not caplog.text
    write_photos(tmp_path, [f"{box} 0 0 0 0 0 0" for box in sizes], size=(100, 50))
    assert len(reader.photos("all")) == 5
    assert re.search(r"line 3: the box ends outside of its photo, like 4 of 5 .* photos of another size", caplog.text)


def test_readers_warn_about_doubled_boxes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch faces that are annotated twice: each would be found once and missed once."""
    photos = {"e/a.jpg": CROWD[:1] * 3, "e/b.jpg": CROWD[:1]}
    write_file(tmp_path / TRAIN, official(photos))
    for name in photos:
        image(tmp_path / "WIDER_train" / "images" / name)
    read = faces_by_name(wider(tmp_path, labels="official", lists=None), "all")
    assert [len(faces) for faces in read.values()] == [3, 1]
    assert re.search(r"train_bbx_gt\.txt, line 4: a box that the photo has already \(2 such rows\)", caplog.text)


def test_wider_refuses_a_photo_that_is_listed_twice(tmp_path: Path) -> None:
    """Would catch a file that was appended twice, whose photos would be measured twice."""
    write_wider(tmp_path)
    write_file(tmp_path / TRAIN, 2 * (tmp_path / TRAIN).read_text())
    with pytest.raises(
        DatasetError, match=r"train_bbx_gt\.txt: the photo 0--Parade/1\.jpg is listed more than once \(41"
    ):
        wider(tmp_path).photos("train")


def test_wider_lists_have_their_faces_on_real_data() -> None:
    """Would catch lists that are read from the wrong side of a cell, and faces of a list without an area."""
    faces = [face for photo in wider(face_data("WIDER")).photos("test") for face in photo.faces]
    tags = Counter(tag for face in faces for tag in face.tags)
    assert tags["easy"] <= tags["medium"] <= tags["hard"] <= len(faces) == 200
    # the lists are almost those of all faces above a height
    heights = np.array([face.box[3] - face.box[1] for face in faces])
    for name, height in (("easy", 50), ("medium", 30), ("hard", 10)):
        listed = np.array([name in face.tags for face in faces])
        valid = np.array(["invalid" not in face.tags for face in faces])
        assert listed[valid & (heights > height)].mean() > 0.99 and listed[heights < height].mean() < 0.05


def test_wider_keeps_the_points_of_equal_boxes(tmp_path: Path) -> None:
    """Would catch points that are lost where a file has the box of a face twice."""
    write_file(tmp_path / TRAIN, f"e/a.jpg\n2\n{ROW}{ROW}")
    image(tmp_path / "WIDER_train" / "images" / "e/a.jpg")
    write_file(
        tmp_path / TRAIN_LABELS, "# e/a.jpg\n9 9 20 20" + " 12 13 0" * 5 + " 1\n9 9 20 20" + " -1 -1 -1" * 5 + " 1\n"
    )
    (photo,) = wider(tmp_path, labels="both", lists=None).photos("all")
    assert [bool(np.isfinite(face.points).all()) for face in photo.faces] == [True, False]


# VOC


def test_voc_reads_names_with_spaces(tmp_path: Path) -> None:
    """Would catch names that are cut at a blank, or of which a number at the end is taken for a class."""
    write_voc(tmp_path)
    for name in ("my photo 1", "my photo 2"):
        image(tmp_path / "JPEGImages" / f"{name}.jpg")
        write_file(tmp_path / "Annotations" / f"{name}.xml", annotation(thing("face", (5, 5, 20, 30))))
    write_file(tmp_path / "ImageSets" / "Main" / "test.txt", "my photo 1\nmy photo 2\n")
    assert [photo.path.stem for photo in voc(tmp_path).photos("test")] == ["my photo 1", "my photo 2"]


def test_voc_refuses_classes_without_an_object(tmp_path: Path) -> None:
    """Would catch a set that is measured without a face because of a mistyped class, and doubled tags."""
    write_voc(tmp_path)
    with pytest.raises(DatasetError, match=r"no object is a face: data\.classes=\['Face'\], but the files have "):
        VOC("v", str(tmp_path), FIVE5, ["Face"], 1, skip_unpaired=False).photos("all")
    for classes in (["face", "face"], ["face", "difficult"]):
        with pytest.raises(ConfigError, match="a class is named twice, or like a flag"):
            VOC("v", str(tmp_path), FIVE5, classes, 1, skip_unpaired=False)


def test_voc_reads_flags_and_classes_as_tags(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a difficult face that counts as missed, and objects of other classes that are lost without a word."""
    write_voc(tmp_path)
    things = [thing("face", (5, 5, 20, 30)), thing("person", (1, 1, 50, 90)), thing("person", (2, 2, 50, 90))]
    write_file(tmp_path / "Annotations" / "val2.xml", annotation(*things))
    photos = {photo.path.stem: photo.faces for photo in voc(tmp_path).photos("all")}
    assert [face.tags for face in photos["val0"]] == [{"face"}, {"mask", "difficult"}]
    assert len(photos["val1"]) == 0 and len(photos["val2"]) == 1
    assert np.isnan(photos["val0"][0].points).all() and photos["val0"][0].points.shape == (5, 2)
    assert "objects that are not in data.classes were not read: person (2)" in caplog.text


def test_voc_counts_pixels_from_the_origin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a shift by a pixel in files that count from 0, and files that are read with the wrong origin."""
    write_voc(tmp_path)
    write_file(tmp_path / "Annotations" / "train0.xml", annotation(thing("face", (0, 0, 9, 19))))
    box = voc(tmp_path, origin=0).photos("train")[0].faces[0].box
    assert box.tolist() == [-0.5, -0.5, 9.5, 19.5] and not caplog.text
    voc(tmp_path).photos("train")
    assert re.search(r"train0\.xml, object 1: the box begins before the first pixel, 1 .* data\.origin=0", caplog.text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "no element found|unclosed|mismatched"),
        ("<xml></xml>", "the root is <xml>, expected <annotation>"),
        (annotation(thing("", (1, 1, 2, 2))), "object 1: has no <name>"),
        (annotation("<object><name>face</name></object>"), "object 1: has no <bndbox><xmin>"),
        (annotation(thing("face", (1, 1, 9, 9)), thing("face", (5, 5, float("nan"), 9))), "object 2: <xmax> is 'nan'"),
        (
            annotation("<object><name>face</name><bndbox><xmin>1_0</xmin></bndbox></object>"),
            "<xmin> is '1_0', expected a",
        ),
        (annotation(thing("face", (50, 60, 20, 20))), "<xmax> 20 is below <xmin> 50; .* not a width or height"),
        (annotation(thing("face", (5, 60, 20, 20))), "<ymax> 20 is below <ymin> 60"),
        (
            annotation(thing("face", (1, 1, 9, 9)).replace("</object>", "<difficult>yes</difficult></object>")),
            "object 1: <difficult> is 'yes', expected 0 or 1",
        ),
        (annotation(thing("face", (0.1, 0.2, 0.5, 0.9))), r"object 1: the box \[0\.1, .* looks like fractions"),
    ],
)
def test_voc_refuses_mistakes_in_a_file(text: str, message: str, tmp_path: Path) -> None:
    """Would catch an object that is skipped or read as something else."""
    write_voc(tmp_path)
    write_file(tmp_path / "Annotations" / "train2.xml", text)
    with pytest.raises(DatasetError, match=rf"train2\.xml[:,] .*({message})"):
        voc(tmp_path).photos("train")


def test_voc_reports_lists_without_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch listed photos that silently do not count, and a photo that counts in two splits."""
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "train1.xml").unlink()
    (tmp_path / "JPEGImages" / "train2.jpg").unlink()
    message = r"1 listed without JPEGImages/\*\.jpg \(train2\); 1 .*\(train1\)\. .* data\.skip_unpaired=true"
    with pytest.raises(DatasetError, match=message):
        voc(tmp_path).photos("train")
    caplog.set_level(logging.WARNING)
    assert [photo.path.stem for photo in voc(tmp_path, skip=True).photos("train")] == ["train0"]
    assert "skipped 1 listed without" in caplog.text
    write_file(tmp_path / "ImageSets" / "Main" / "val.txt", "test0 -1\nval1 1\n")
    assert len(voc(tmp_path).photos("val")) == 2  # a list of one class has a number behind each name
    assert [photo.path.stem for photo in voc(tmp_path).photos("val")] == ["test0", "val1"]
    with pytest.raises(DatasetError, match=r"lists of all: the photo test0 is listed more than once \(1 such photos\)"):
        voc(tmp_path).photos("all")
    write_file(tmp_path / "ImageSets" / "Main" / "val.txt", "val0\n\nval1\n")
    with pytest.raises(DatasetError, match=r"val\.txt, line 2: expected the name of a photo, found a blank line"):
        voc(tmp_path).photos("val")
    (tmp_path / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(DatasetError, match="no split 'test', only train, val"):
        voc(tmp_path).photos("test")


def test_mask_voc_has_its_faces_on_real_data() -> None:
    """Would catch boxes that are shifted or too small: faces at the edge of a photo end exactly there."""
    reader = voc(face_data("mask_voc"), classes=("with_mask", "without_mask", "mask_weared_incorrect"))
    boxes = np.array([face.box for photo in reader.photos("all") for face in photo.faces])
    assert len(boxes) == 3300 and (boxes[:, :2].min(axis=0) == -0.5).all()
    assert (boxes[:, 2:] - boxes[:, :2]).min() > 0
