"""Whatever lies in the folder of a run: it is a row that tells why, and the other runs stand as before."""

import csv
import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from run_folders import CONFIG, METRICS, QUICK, changed, measure, write, write_faces, written

from facelab.comparison.page import read_picture
from facelab.comparison.read import read_runs
from facelab.run_folder import MOST_JOBS

LAUGHS = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 40))
"""A YAML file of two kilobytes that stands for 2 ** 39 values."""
FACES = "face_id,photo,nme_ioc,nme_box,box\n"


def header(width: int, height: int) -> bytes:
    """A PNG file that promises so many pixels, of which it has a few."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + size, b"IDAT" + zlib.compress(bytes(1000)), b"IEND")
    packed = (struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def text(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(content.encode() if isinstance(content, str) else content))


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def as_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def huge(path: Path) -> None:
    """A file of four gigabytes that takes no room on disk."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(2**32)


def void(_: object) -> None: ...


ANY: dict[str, Callable[[Path], None]] = {
    "pipe": pipe,
    "device": device,
    "folder": as_folder,
    "huge": huge,
    "binary": text(b"\xff\xfe\x00"),
    "deep": text("[" * 100_000 + "]" * 100_000),
    "less deep": text('{"a":' * 300 + "1" + "}" * 300),
    "list": text("[1, 2]"),
}
"""What may stand in the place of any file."""
NUMBERS = {"huge number": text('{"cells": ' + "9" * 10_000 + "}"), "infinite": text('{"params": ' + "9" * 400 + "}")}
SAMPLES = Path("samples") / "worst.png"
BAD: dict[str, dict[str, Callable[[Path], None]]] = {
    "config.yaml": ANY
    | {
        "laughs": text(LAUGHS),
        "digits": text("a: 1:" + "1:" * 100_000 + "1"),
        "hexadecimal": text("a: 0x" + "f" * 5000),
        "date": text("a: 2001-99-99"),
        "tag": text("a: !!int ''"),
        "many": text("[" + "a," * 100_000 + "]"),
    },
    "status.json": ANY | {"huge number": text("9" * 10_000)},
    "metrics.json": ANY
    | {
        "huge number": text("9" * 10_000),
        "infinite": text(json.dumps({"metrics": {"nme_box": 10**400}})),
        "many": text(json.dumps({"protocol": {str(n): n for n in range(5000)}})),
    },
    "benchmark.json": ANY | NUMBERS,
    "benchmark_pose.json": ANY | NUMBERS,
}
"""Files of a run that its row is made of, and what is wrong with them."""
BESIDE: dict[str, dict[str, Callable[[Path], None]]] = {
    "faces.csv": ANY
    | {
        "no columns": text("face_id,photo\n0,a.jpg\n"),
        "text": text(FACES + "0,a.jpg,much,0.1,3\n"),
        "unequal": text(FACES + "0,a.jpg,0.1\n"),
        "large": text(FACES.replace("box\n", "points\n") + f"0,a.jpg,0.1,0.1,{10**30}\n"),
        "field": text(FACES + "0," + "a" * 200_000 + ",0.1,0.1,3\n"),
        "empty": text(""),
    },
    "metrics.csv": ANY
    | {
        "no columns": text("a,b\n1,2\n"),
        "text": text("epoch,step,train/loss\n0,1,much\n"),
        "unequal": text("epoch,step,train/loss\n0\n"),
        "before the first": text("epoch,step,train/loss\n-1,1,1\n"),
        "large": text(f"epoch,step,train/loss\n0,{10**400},1\n"),
        "nul": text("epoch,step,train/loss\n0,1,\x00\n"),
        "field": text("epoch,step,train/loss\n0,1," + "1" * 200_000 + "\n"),
    },
    str(SAMPLES): {key: make for key, make in ANY.items() if key != "list"}
    | {
        "header": text(header(60_000, 60_000)),
        "less than Pillow refuses": text(header(9_000, 9_000)),
        "svg": text("<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "postscript": text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "no pixels": text(header(0, 0)),
    },
}
"""Files beside the numbers of a run, and what is wrong with them."""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A whole run."""
    return whole(tmp_path / "runs" / "good")


def whole(folder: Path, **values: Any) -> Path:
    """A run with all its files."""
    measure(write(folder, config=changed(CONFIG, **values), measured=False), 2, 1, faces=10)
    (folder / "samples").mkdir()
    Image.new("RGB", (30, 20)).save(folder / SAMPLES)
    return folder


def cases(files: dict[str, dict[str, Callable[[Path], None]]]) -> list[Any]:
    return [pytest.param(file, make, id=f"{file}-{key}") for file, bad in files.items() for key, make in bad.items()]


@pytest.mark.parametrize(("file", "make"), cases(BAD))
def test_bad_file_is_told_in_a_row(good: Path, tmp_path: Path, file: str, make: Callable[[Path], None]) -> None:
    """A traceback, a wait without an end, or gigabytes of memory for one bad file, and no table of the other runs."""
    bad = whole(tmp_path / "runs" / "bad", crop__size=3)
    (bad / file).unlink(missing_ok=True)
    make(bad / file)
    runs = {run.name: run for run in read_runs([tmp_path / "runs" / "*"])}
    assert runs["good"].ranked and runs["bad"].state == "unreadable"
    assert file in runs["bad"].reason and "\n" not in runs["bad"].reason and len(runs["bad"].reason) < 400
    for what in written(list(runs.values()), tmp_path / "out").values():
        assert file in what


@pytest.mark.parametrize(("file", "make"), cases(BESIDE))
def test_bad_file_beside_the_numbers_is_told_on_the_page(
    good: Path, tmp_path: Path, file: str, make: Callable[[Path], None]
) -> None:
    """A bad curve, picture or table of faces ends the page of all runs, or is left out without a word."""
    bad = whole(tmp_path / "runs" / "bad", crop__size=3)
    (bad / file).unlink()
    make(bad / file)
    runs = read_runs([tmp_path / "runs" / "*"])
    assert all(run.ranked and not run.reason for run in runs)
    page = written(runs, tmp_path / "out")["a.html"]
    assert page.count(Path(file).name) - page.count(good.name + "/" + file) >= 1
    told = json.loads(page.split('id="data">')[1].split("</script>")[0])["sections"][0]["runs"]
    faults = {run["name"]: " ".join(run["faults"]) for run in told}
    assert faults["good"] == "" and (file == str(SAMPLES)) == (faults["bad"] == "")
    assert page.count("data:image/jpeg") == (1 if file == str(SAMPLES) else 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"cells": {str(n): [] for n in range(MOST_JOBS + 1)}}, "10,001 jobs"),
        ({"cells": {"../../x": []}}, "'../../x' has a name that is not a whole number"),
        ({"cells": {"-1": []}}, "not a whole number"),
        ({"cells": {"9" * 300: []}}, "not a whole number"),
        ({"cells": {"0": "seed=1"}}, "not a list of words"),
        ({"cells": {"0": [{"a": 1}]}}, "not a list of words"),
        ({"cells": ["0"]}, "has no `cells`"),
        ([], "has no `cells`"),
        (pipe, "pipe"),
        (device, "device"),
        (as_folder, "Is a directory"),
        (huge, "more than"),
        (ANY["deep"], "deep"),
    ],
)
def test_bad_list_of_jobs_is_told_in_a_row(tmp_path: Path, content: Any, reason: str) -> None:
    """The runs of a sweep are lost with its list, or a list leads out of the folder or gives a million rows."""
    whole(tmp_path / "sweep" / "0")
    file = tmp_path / "sweep" / "sweep.json"
    content(file) if callable(content) else file.write_text(json.dumps(content))
    runs = read_runs([tmp_path / "sweep"])
    assert [(run.name, run.state) for run in runs] == [("sweep/0", "finished"), ("sweep", "unreadable")]
    assert reason in runs[1].reason and "\n" not in runs[1].reason
    assert all("sweep.json" in what for what in written(runs, tmp_path / "out").values())
    assert read_runs([tmp_path / "sweep" / "0"])[0].ranked


def test_file_in_the_place_of_a_folder_is_no_run(good: Path) -> None:
    """A file that lies beside the folders of runs, and is typed with them, is taken for a broken sweep."""
    (good.parent / "notes").touch()
    assert [run.state for run in read_runs([good, good.parent / "notes"])] == ["finished", "no run"]


def test_all_bad_folders_at_once_are_read_within_bounds(tmp_path: Path) -> None:
    """The door ends with a traceback, waits, or takes more memory than a machine has."""
    whole(tmp_path / "runs" / "good")
    bad = [(file, make) for part in (BAD, BESIDE) for file in part for make in part[file].values()]
    for number, (name, make) in enumerate(bad):
        folder = whole(tmp_path / "runs" / f"bad{number}", crop__size=number)
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)); "
    limited += f"runpy.run_path({str(ROOT / 'compare.py')!r}, run_name='__main__')"
    files = {name: str(tmp_path / f"all.{name}") for name in ("csv", "markdown", "html")}
    words = [f"{tmp_path}/runs/*", *(word for name, file in files.items() for word in (f"--{name}", file))]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", limited, *words, "--pictures", "99"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    assert time.perf_counter() - start < 30
    with Path(files["csv"]).open() as file:
        assert "good" in {row["run"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("make", BESIDE["faces.csv"].values(), ids=BESIDE["faces.csv"])
def test_pair_with_a_bad_table_ends_in_one_line(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A pair of which one has no readable faces ends in a traceback or in a wait."""
    from facelab.comparison.pairs import compare_pair
    from facelab.errors import RunError

    bad, fine = (whole(tmp_path / "runs" / name) for name in ("bad", "fine"))
    (bad / "faces.csv").unlink()
    make(bad / "faces.csv")
    a, b = read_runs([bad, fine])
    with pytest.raises((RunError, OSError)) as caught:
        compare_pair(a, b)
    assert "\n" not in str(caught.value) and "faces.csv" in str(caught.value)


def test_long_name_of_a_photo_takes_no_memory_for_the_others(tmp_path: Path) -> None:
    """Each of a hundred thousand names takes the room of the longest: fifty gigabytes."""
    from facelab.metrics.face_table import read_faces

    write_faces(write(tmp_path / "a"), [0.1] * 100_000, ["p" * 120_000, *["p"] * 99_999])
    assert read_faces(tmp_path / "a" / "faces.csv")["photo"].nbytes < 10**6


VALUES: Any = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([10**400, -1, 0, 2**31, 1e200, 3e200, 1e308, -1e308]),
        st.floats(),
        st.text(max_size=6),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
KEYS = ("seed", "model", "callbacks", "paths", "evaluate", "test_ckpt", "monitor", "trainer", "backbone")
CONFIGS = st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=4)), VALUES, max_size=5)
STATES = st.fixed_dictionaries(
    {"state": st.one_of(st.sampled_from(["finished", "running", "queued"]), VALUES)},
    optional=dict.fromkeys(("pid", "reason", "heartbeat", "started", "slurm_job"), VALUES)
    | {"host": st.just(os.uname().nodename)},
)
RESULTS = st.fixed_dictionaries(
    {
        "protocol": st.dictionaries(
            st.sampled_from(["dataset", "faces", "split", "x"]), VALUES, min_size=1, max_size=3
        ),
        "metrics": st.dictionaries(st.sampled_from([*METRICS, "x"]), VALUES, max_size=4),
        "counts": st.dictionaries(st.sampled_from([*METRICS, "x"]), st.integers(), max_size=3),
        "intervals": st.dictionaries(
            st.sampled_from([*METRICS, "x"]), st.lists(VALUES, min_size=2, max_size=2), max_size=3
        ),
    }
)


@QUICK
@given(configs=st.lists(CONFIGS, min_size=2, max_size=2), status=STATES, results=RESULTS, benchmark=CONFIGS)
def test_any_values_are_shown_or_refused(
    tmp_path_factory: pytest.TempPathFactory, configs: Any, status: Any, results: Any, benchmark: Any
) -> None:
    """A value of another kind than a run writes ends the comparison of all: a list for a class, a number too large."""
    folder = tmp_path_factory.mktemp("runs")
    whole(folder / "good")
    for number, config in enumerate(configs):
        bad = write(folder / f"bad{number}", status=status, measured=False)
        (bad / "config.yaml").write_text(json.dumps(config))
        (bad / "metrics.json").write_text(json.dumps(results))
        (bad / "benchmark.json").write_text(json.dumps({"latency_p50_ms": 1.0} | benchmark))
    shown = written(read_runs([folder / "*"]), folder / "out")
    assert all("good" in what for what in shown.values())


@pytest.mark.parametrize("side", [7100, 9_000, 12_000, 60_000])
def test_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, side: int, recwarn: pytest.WarningsRecorder) -> None:
    """A picture of some hundred bytes takes gigabytes, or an error that Pillow has for it alone ends the page."""
    (tmp_path / "worst.png").write_bytes(header(side, side))
    with pytest.raises(ValueError, match=r"^worst\.png: .* pixels"):
        read_picture(tmp_path / "worst.png")
    assert not recwarn.list


@QUICK
@given(st.data())
def test_damaged_picture_is_shown_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """A picture of which some bytes are others ends the page in an error that Pillow has for it alone."""
    stream = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((20, 20)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    (tmp_path / "worst.png").write_bytes(content[:end])
    try:
        assert read_picture(tmp_path / "worst.png").mode == "RGB"
    except ValueError as error:
        assert "worst.png" in str(error)


@QUICK
@given(st.binary(max_size=400), st.sampled_from([*BAD, *BESIDE]))
def test_any_bytes_are_shown_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, file: str) -> None:
    """Bytes of no file at all end the comparison of all runs."""
    folder = tmp_path_factory.mktemp("runs")
    bad = whole(folder / "bad")
    whole(folder / "good", crop__size=3)
    (bad / file).write_bytes(content)
    assert all("good" in what for what in written(read_runs([folder / "*"]), folder / "out").values())
