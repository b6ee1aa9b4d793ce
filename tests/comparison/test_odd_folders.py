"""Tests of damaged run folders: each becomes a row with a reason, and the other runs are unchanged."""

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
from run_folders import CONFIG, METRICS, QUICK, all_outputs, with_values, write_faces, write_results, write_run

from facelab.comparison.page import read_picture
from facelab.comparison.read import read_runs
from facelab.run_folder import MAX_JOBS

NESTED_ALIASES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 40))
"""A YAML file of two kilobytes that expands to 2 ** 39 values."""
CURVES = "metric,score,recall,precision,envelope,false_per_photo\n"
FACES = "face_id,photo,nme_ioc,nme_box,box\n"


def header(width: int, height: int) -> bytes:
    """Return a PNG file whose header declares this size, with data for a few pixels only."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + size, b"IDAT" + zlib.compress(bytes(1000)), b"IEND")
    packed = (struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def write_content(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: discard(path.write_bytes(content.encode() if isinstance(content, str) else content))


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
    """Make a sparse file of four gigabytes, which takes no room on disk."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(2**32)


def discard(_: object) -> None: ...


ANY_BAD: dict[str, Callable[[Path], None]] = {
    "pipe": pipe,
    "device": device,
    "folder": as_folder,
    "huge": huge,
    "binary": write_content(b"\xff\xfe\x00"),
    "deep": write_content("[" * 100_000 + "]" * 100_000),
    "less deep": write_content('{"a":' * 300 + "1" + "}" * 300),
    "list": write_content("[1, 2]"),
}
"""Content that may replace any file, by name of the case."""
NUMBERS = {
    "huge number": write_content('{"cells": ' + "9" * 10_000 + "}"),
    "infinite": write_content('{"params": ' + "9" * 400 + "}"),
}
SAMPLES = Path("samples") / "worst.png"
BAD: dict[str, dict[str, Callable[[Path], None]]] = {
    "config.yaml": ANY_BAD
    | {
        "laughs": write_content(NESTED_ALIASES),
        "digits": write_content("a: 1:" + "1:" * 100_000 + "1"),
        "hexadecimal": write_content("a: 0x" + "f" * 5000),
        "date": write_content("a: 2001-99-99"),
        "tag": write_content("a: !!int ''"),
        "many": write_content("[" + "a," * 100_000 + "]"),
    },
    "status.json": ANY_BAD | {"huge number": write_content("9" * 10_000)},
    "metrics.json": ANY_BAD
    | {
        "huge number": write_content("9" * 10_000),
        "infinite": write_content(json.dumps({"metrics": {"nme_box": 10**400}})),
        "many": write_content(json.dumps({"protocol": {str(n): n for n in range(5000)}})),
    },
    "benchmark.json": ANY_BAD | NUMBERS,
    "benchmark_pose.json": ANY_BAD | NUMBERS,
}
"""Damaged versions of the files that the row of a run is made of."""
BAD_BESIDE: dict[str, dict[str, Callable[[Path], None]]] = {
    "faces.csv": ANY_BAD
    | {
        "no columns": write_content("face_id,photo\n0,a.jpg\n"),
        "text": write_content(FACES + "0,a.jpg,much,0.1,3\n"),
        "unequal": write_content(FACES + "0,a.jpg,0.1\n"),
        "large": write_content(FACES.replace("box\n", "points\n") + f"0,a.jpg,0.1,0.1,{10**30}\n"),
        "field": write_content(FACES + "0," + "a" * 200_000 + ",0.1,0.1,3\n"),
        "empty": write_content(""),
    },
    "metrics.csv": ANY_BAD
    | {
        "no columns": write_content("a,b\n1,2\n"),
        "text": write_content("epoch,step,train/loss\n0,1,much\n"),
        "unequal": write_content("epoch,step,train/loss\n0\n"),
        "before the first": write_content("epoch,step,train/loss\n-1,1,1\n"),
        "large": write_content(f"epoch,step,train/loss\n0,{10**400},1\n"),
        "nul": write_content("epoch,step,train/loss\n0,1,\x00\n"),
        "field": write_content("epoch,step,train/loss\n0,1," + "1" * 200_000 + "\n"),
    },
    "detection_curves.csv": ANY_BAD
    | {
        "text": write_content(CURVES + "ap50,1,much,1,1,0\n"),
        "unequal": write_content(CURVES + "ap50,1\n"),
        "infinite": write_content(CURVES + "ap50,1,1,1,1,inf\n"),
        "long": write_content(CURVES + "ap50,1,1,1,1,0\n" * 100_000),
    },
    str(SAMPLES): {key: make for key, make in ANY_BAD.items() if key != "list"}
    | {
        "header": write_content(header(60_000, 60_000)),
        "less than Pillow refuses": write_content(header(9_000, 9_000)),
        "svg": write_content("<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "postscript": write_content("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "no pixels": write_content(header(0, 0)),
    },
}
"""Damaged versions of the other files of a run, which only the page and pairs read."""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Return the folder of a complete run."""
    return write_complete_run(tmp_path / "runs" / "good")


def write_complete_run(folder: Path, **values: Any) -> Path:
    """Write a run with all its files."""
    write_results(write_run(folder, config=with_values(CONFIG, **values), measured=False), 2, 1, faces=10)
    (folder / "samples").mkdir()
    Image.new("RGB", (30, 20)).save(folder / SAMPLES)
    (folder / "detection_curves.csv").write_text(CURVES + "ap50,0.9,0.5,1,1,0.02\n")
    return folder


def cases(files: dict[str, dict[str, Callable[[Path], None]]]) -> list[Any]:
    return [pytest.param(file, make, id=f"{file}-{key}") for file, bad in files.items() for key, make in bad.items()]


@pytest.mark.parametrize(("file", "make"), cases(BAD))
def test_read_runs_reports_a_damaged_file_in_its_row(
    good: Path, tmp_path: Path, file: str, make: Callable[[Path], None]
) -> None:
    """Would catch a traceback, an endless wait, or gigabytes of memory for one bad file, and no table of other runs."""
    bad = write_complete_run(tmp_path / "runs" / "bad", crop__size=3)
    (bad / file).unlink(missing_ok=True)
    make(bad / file)
    runs = {run.name: run for run in read_runs([tmp_path / "runs" / "*"])}
    assert runs["good"].ranked and runs["bad"].state == "unreadable"
    assert file in runs["bad"].reason and "\n" not in runs["bad"].reason and len(runs["bad"].reason) < 400
    for output in all_outputs(list(runs.values()), tmp_path / "out").values():
        assert file in output


@pytest.mark.parametrize(("file", "make"), cases(BAD_BESIDE))
def test_write_page_reports_a_damaged_file_beside_the_metrics(
    good: Path, tmp_path: Path, file: str, make: Callable[[Path], None]
) -> None:
    """Would catch a bad curve, picture or faces.csv that ends the page of all runs, or is left out silently."""
    bad = write_complete_run(tmp_path / "runs" / "bad", crop__size=3)
    (bad / file).unlink()
    make(bad / file)
    runs = read_runs([tmp_path / "runs" / "*"])
    assert all(run.ranked and not run.reason for run in runs)
    page = all_outputs(runs, tmp_path / "out")["a.html"]
    assert page.count(Path(file).name) - page.count(good.name + "/" + file) >= 1
    embedded = json.loads(page.split('id="data">')[1].split("</script>")[0])["sections"][0]["runs"]
    faults = {run["name"]: " ".join(run["faults"]) for run in embedded}
    assert faults["good"] == "" and (file == str(SAMPLES)) == (faults["bad"] == "")
    assert page.count("data:image/jpeg") == (1 if file == str(SAMPLES) else 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"cells": {str(n): [] for n in range(MAX_JOBS + 1)}}, "10,001 jobs"),
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
        (ANY_BAD["deep"], "deep"),
    ],
)
def test_read_runs_reports_a_damaged_sweep_json_in_a_row(tmp_path: Path, content: Any, reason: str) -> None:
    """Would catch a sweep.json that hides the runs, leads out of the folder, or gives a million rows."""
    write_complete_run(tmp_path / "sweep" / "0")
    file = tmp_path / "sweep" / "sweep.json"
    content(file) if callable(content) else file.write_text(json.dumps(content))
    runs = read_runs([tmp_path / "sweep"])
    assert [(run.name, run.state) for run in runs] == [("sweep/0", "finished"), ("sweep", "unreadable")]
    assert reason in runs[1].reason and "\n" not in runs[1].reason
    assert all("sweep.json" in output for output in all_outputs(runs, tmp_path / "out").values())
    assert read_runs([tmp_path / "sweep" / "0"])[0].ranked


def test_read_runs_reports_a_plain_file_as_no_run(good: Path) -> None:
    """Would catch a file among the folders of runs that is taken for a broken sweep."""
    (good.parent / "notes").touch()
    assert [run.state for run in read_runs([good, good.parent / "notes"])] == ["finished", "no run"]


def test_compare_script_reads_all_damaged_folders_within_bounds(tmp_path: Path) -> None:
    """Would catch a traceback, a long wait, or more memory than a machine has."""
    write_complete_run(tmp_path / "runs" / "good")
    bad = [(file, make) for part in (BAD, BAD_BESIDE) for file in part for make in part[file].values()]
    for number, (name, make) in enumerate(bad):
        folder = write_complete_run(tmp_path / "runs" / f"bad{number}", crop__size=number)
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)); "
    limited += f"runpy.run_path({str(ROOT / 'compare.py')!r}, run_name='__main__')"
    files = {name: str(tmp_path / f"all.{name}") for name in ("csv", "markdown", "html")}
    arguments = [f"{tmp_path}/runs/*", *(argument for name, file in files.items() for argument in (f"--{name}", file))]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments, "--pictures", "99"],
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


@pytest.mark.parametrize("make", BAD_BESIDE["faces.csv"].values(), ids=BAD_BESIDE["faces.csv"])
def test_compare_pair_refuses_a_damaged_faces_csv_in_one_line(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Would catch a traceback or a wait if one run of a pair has no readable faces.csv."""
    from facelab.comparison.pairs import compare_pair
    from facelab.errors import RunError

    bad, fine = (write_complete_run(tmp_path / "runs" / name) for name in ("bad", "fine"))
    (bad / "faces.csv").unlink()
    make(bad / "faces.csv")
    a, b = read_runs([bad, fine])
    with pytest.raises((RunError, OSError)) as caught:
        compare_pair(a, b, ["nme_box"])
    assert "\n" not in str(caught.value) and "faces.csv" in str(caught.value)


def test_read_faces_stores_one_long_photo_name_compactly(tmp_path: Path) -> None:
    """Would catch 100,000 names that each take the memory of the longest: fifty gigabytes."""
    from facelab.metrics.face_table import read_faces

    write_faces(write_run(tmp_path / "a"), [0.1] * 100_000, ["p" * 120_000, *["p"] * 99_999])
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
PROTOCOLS = st.dictionaries(st.sampled_from(["dataset", "faces", "split", "x"]), VALUES, min_size=1, max_size=3)
RECORDS = st.fixed_dictionaries(
    {
        **dict.fromkeys(("value", "low", "high"), st.one_of(st.floats(), st.sampled_from(["inf", None]), VALUES)),
        **dict.fromkeys(("faces", "left_out"), st.integers()),
        "unit": st.sampled_from(["fraction", "degrees", "pixels", "count", "x"]),
        "better": st.sampled_from(["lower", "higher", "none"]),
    },
    optional=dict.fromkeys(("whole", "breakdown", "part"), st.text(max_size=4)),
)
RESULTS = st.fixed_dictionaries(
    {"protocol": PROTOCOLS, "metrics": st.dictionaries(st.sampled_from([*METRICS, "x"]), RECORDS, max_size=4)}
)
OLD_RESULTS = st.fixed_dictionaries(
    {
        "protocol": PROTOCOLS,
        "metrics": st.dictionaries(st.sampled_from([*METRICS, "x"]), VALUES, max_size=4),
        "counts": st.dictionaries(st.sampled_from([*METRICS, "x"]), st.integers(), max_size=3),
        "intervals": st.dictionaries(
            st.sampled_from([*METRICS, "x"]), st.lists(VALUES, min_size=2, max_size=2), max_size=3
        ),
    }
)


@QUICK
@given(
    configs=st.lists(CONFIGS, min_size=2, max_size=2),
    status=STATES,
    results=st.one_of(RESULTS, OLD_RESULTS),
    benchmark=CONFIGS,
)
def test_compare_survives_any_values_in_the_files(
    tmp_path_factory: pytest.TempPathFactory, configs: Any, status: Any, results: Any, benchmark: Any
) -> None:
    """Would catch a comparison of all runs that fails on a value of the wrong type or size, e.g. a list as a class."""
    folder = tmp_path_factory.mktemp("runs")
    write_complete_run(folder / "good")
    for number, config in enumerate(configs):
        bad = write_run(folder / f"bad{number}", status=status, measured=False)
        (bad / "config.yaml").write_text(json.dumps(config))
        (bad / "metrics.json").write_text(json.dumps(results))
        (bad / "benchmark.json").write_text(json.dumps({"latency_p50_ms": 1.0} | benchmark))
    outputs = all_outputs(read_runs([folder / "*"]), folder / "out")
    assert all("good" in output for output in outputs.values())


@pytest.mark.parametrize("side", [7100, 9_000, 12_000, 60_000])
def test_read_picture_refuses_too_many_pixels(tmp_path: Path, side: int, recwarn: pytest.WarningsRecorder) -> None:
    """Would catch a picture of some hundred bytes that takes gigabytes, or a Pillow error that ends the page."""
    (tmp_path / "worst.png").write_bytes(header(side, side))
    with pytest.raises(ValueError, match=r"^worst\.png: .* pixels"):
        read_picture(tmp_path / "worst.png")
    assert not recwarn.list


@QUICK
@given(st.data())
def test_read_picture_survives_damaged_bytes(tmp_path: Path, data: st.DataObject) -> None:
    """Would catch damaged bytes in a picture that end the page with an error of Pillow."""
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
@given(st.binary(max_size=400), st.sampled_from([*BAD, *BAD_BESIDE]))
def test_compare_survives_any_bytes_in_a_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, file: str
) -> None:
    """Would catch bytes of no known format that end the comparison of all runs."""
    folder = tmp_path_factory.mktemp("runs")
    bad = write_complete_run(folder / "bad")
    write_complete_run(folder / "good", crop__size=3)
    (bad / file).write_bytes(content)
    assert all("good" in output for output in all_outputs(read_runs([folder / "*"]), folder / "out").values())
