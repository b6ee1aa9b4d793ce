"""YouTube Faces: one CSV file for train and one for test; a line is one frame, named after its person."""

from pathlib import Path

from writing import flat, image, some_points
from writing import write as write_file

from facelab.annotations.ytf68 import YTFaces
from facelab.faces.layouts import IBUG68

TEST_PERSON, VAL_PERSON, TRAIN_PERSON = "Ben_Example", "Gus_Sample", "Cleo_van_der_Sample"  # by the SHA-256 of the name
KNOWN = (f"test/{TEST_PERSON}_11.jpg", some_points(IBUG68, len("test") + 1))
LINE = (Path("training_frames_keypoints.csv"), 3, ",")
REAL = {"ytf68": ("train", "val", "test")}


def write(root: Path) -> None:
    files = {
        "training": [f"{TRAIN_PERSON}_21.jpg", f"{VAL_PERSON}_00.jpg", f"{TEST_PERSON}_10.jpg"],
        "test": [f"{TRAIN_PERSON}_21.jpg", f"{TEST_PERSON}_11.jpg"],
    }
    header = "".join(f",{i}" for i in range(2 * IBUG68.num_points)) + "\n"
    for part, names in files.items():
        lines = [f"{name},{flat(some_points(IBUG68, len(part) + i), ',')}\n" for i, name in enumerate(names)]
        write_file(root / f"{part}_frames_keypoints.csv", header + "".join(lines))
        for name in names:
            image(root / part / name)


def read(root: Path, *, skip: bool = False) -> YTFaces:
    return YTFaces("ytf68", str(root), IBUG68, skip_unpaired=skip)
