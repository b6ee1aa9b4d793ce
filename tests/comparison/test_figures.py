import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import CONFIG, grid_of_runs, with_values, write_detector, write_results, write_run

from facelab.comparison.figures import (
    distribution,
    figures_of_curves,
    figures_of_detections,
    pareto,
    read_curves,
    section_data,
    thin,
)
from facelab.comparison.grid import build_cells
from facelab.comparison.group import Table, compare
from facelab.comparison.pairs import compare_pair, pair_cells, pair_line, paired_metrics
from facelab.comparison.read import read_runs
from facelab.metrics.landmarks import percentile


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep of twelve measured runs (six settings, two seeds), a failed one and one that never started."""
    return grid_of_runs(tmp_path_factory.mktemp("logs") / "2026-11-20_10-00-00", seeds=2, faces=80)


def test_read_curves_skips_an_incomplete_last_line_and_names_a_broken_one(tmp_path: Path) -> None:
    """Would catch an unfinished metrics.csv that ends the comparison, or half a number drawn as a whole one."""
    file = tmp_path / "metrics.csv"
    text = "epoch,step,train/loss,val/nme_box\n,0,,\n0,9,1.5,\n0,9,,0.05\n1,19,1.25,\n1,19,,0.04\n"
    file.write_text(text + "2,29,0.9")
    curves = read_curves(file, ["train/loss", "val/nme_box", "val/other"])
    assert curves.steps_per_epoch == 10
    assert curves.values == {"train/loss": ([9, 19], [1.5, 1.25]), "val/nme_box": ([9, 19], [0.05, 0.04])}
    file.write_text(text + "0,9,1.75,\n")  # logged again by a resumed run
    assert read_curves(file, ["train/loss"]).values["train/loss"] == ([9, 19], [1.75, 1.25])
    for line in ("2,29,much,\n", "2\n"):
        file.write_text(text + line)
        with pytest.raises(ValueError, match=r"metrics\.csv:7: "):
            read_curves(file, ["train/loss"])
    file.write_text("a,b\n")
    with pytest.raises(ValueError, match="no columns epoch and step"):
        read_curves(file, ["train/loss"])


def test_thin_averages_long_curves() -> None:
    """Would catch a curve without its last point, or a page with every step of every run."""
    assert thin([1, 2, 3, 4, 5], [1, 3, 5, 7, 9], 3) == ([1.5, 3.5, 5], [2, 6, 9])
    assert thin([1, 2], [3, 4], 150) == ([1, 2], [3, 4])
    assert len(thin(range(1000), range(1000), 150)[0]) <= 150


def test_pareto_returns_the_undominated_points() -> None:
    """Would catch a dominated point on the front, a duplicate of it, or a point without a number."""
    points = [(1, 9), (2, 5), (2, 4), (3, 4), (4, 1), (5, 0.5), (0.5, math.nan), (math.nan, 0), (1, math.inf)]
    assert pareto(points) == [0, 2, 4, 5]
    assert pareto([]) == []


def test_distribution_returns_the_errors_of_whole_percentages() -> None:
    """Would catch a curve that is shifted by a face, counts a face without an error, or hides an infinite one."""
    e = np.append(np.random.default_rng(0).permutation(250) / 1000, [np.nan, np.inf])
    errors = distribution(e)
    assert len(errors) == 101 and (errors[0], errors[-1]) == (0, math.inf)
    for share, error in enumerate(errors[1:-1], start=1):
        assert error == percentile(e, share)
    assert distribution(np.array([0.5])) == [0.5] * 101 and distribution(np.array([np.nan])) == []


def data_of(folder: Path, *named: str) -> tuple[Table, dict[str, Any]]:
    """Return the table of a sweep and the data of its figures."""
    runs = read_runs([folder])
    table = compare(runs, None)[0]
    return table, section_data(table, figures_of_curves(runs), {folder / job for job in named})


def test_section_data_holds_the_numbers_of_the_figures(sweep: Path) -> None:
    """Would catch a figure with another run's numbers, a part without faces, or a front of the wrong error."""
    table, data = data_of(sweep)
    first = data["rows"][0]
    assert first["label"] == "resnet50, lr 0.0005 (2 seeds)" and first["runs"] == [
        table.runs.index(run) for run in table.rows[0].runs
    ]
    mean, low, high, _ = first["metrics"]["nme_box"]
    assert mean == pytest.approx(100 * table.rows[0].metrics["nme_box"].value, rel=1e-3) and low < mean < high
    assert [group["title"] for group in data["groups"]] == ["Head pose", "Subset", "Region", "Face size"]
    assert data["groups"][0]["items"][2][0] == "over 60°" and data["groups"][0]["axis"] == "nme_box, %"
    assert [cost["axis"] for cost in data["costs"]] == ["MACs, M", "Latency, ms"]
    assert {*data["costs"][0]["values"]} == {580, 2440, 5600}
    assert {*data["costs"][0]["texts"]} == {"580.0 M", "2440.0 M", "5600.0 M"}
    labels = [data["rows"][place]["label"].split(",")[0] for place in data["costs"][0]["fronts"]["nme_box"]]
    assert labels == ["mobilenetv2_100", "resnet18", "resnet50"]
    run = data["runs"][0]
    place, losses = run["curves"]["train/loss"]
    assert run["rate"] == 100 and len(data["steps"]) == 2 and len(data["steps"][place]) == len(losses) == 75
    assert run["curves"]["val/nme_box"][1][-1] == pytest.approx(100 * table.runs[0].metrics["nme_box"].value, rel=0.1)
    assert np.mean(run["errors"]["nme_box"]) == pytest.approx(mean, rel=0.1)


def test_section_data_has_the_texts_of_the_tables(sweep: Path) -> None:
    """Would catch a number in a figure that is not the one in the table, or differs from that of --pair."""
    table, data = data_of(sweep)
    heading, *lines = build_cells(table)
    columns = {cell.text: place for place, cell in enumerate(heading)}
    assert len(lines) == len(data["rows"]) == 6
    for line, row in zip(lines, data["rows"], strict=True):
        for metric in row["metrics"].keys() & columns.keys():
            cell = line[columns[metric]]
            assert cell.below.startswith("±") and row["metrics"][metric][3] == f"{cell.text} % ({cell.below})"
    pairs, number = data["pairs"], len(table.runs)
    assert {(int(b), int(a)) for b, of in pairs["of"].items() for a in of} == {
        (b, a) for b in range(number) for a in range(number) if a != b
    }
    for b, a in ((0, 1), (1, 0), (3, 11)):
        pair = compare_pair(table.runs[a], table.runs[b], paired_metrics(()))
        columns_of_pair, *rows = [[cell.text for cell in row] for row in pair_cells(pair, table.runs[b].metrics)]
        line, entries = pairs["of"][b][a]
        assert pairs["lines"][line] == pair_line(pair) and pairs["columns"] == columns_of_pair
        assert [entry[3:] for entry in entries] == rows and len(rows) == 4
        assert [entry[0] for entry in entries] == pytest.approx([float(row[1]) for row in rows], abs=0.0051)
        assert all(low <= value <= high for value, low, high, *_ in entries) and entries[0][1] < entries[0][2]


def test_section_data_limits_the_pairs(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch 125,000 pairs of 500 runs, a limit that the page does not mention, or a run of --pair without it."""
    monkeypatch.setattr("facelab.comparison.figures.MOST_PAIRS", 30)
    table, data = data_of(sweep, "0")
    named = next(place for place, run in enumerate(table.runs) if run.folder == sweep / "0")
    assert list(data["pairs"]["of"]) == [0, 1, named] and all(len(of) == 11 for of in data["pairs"]["of"].values())
    assert "one of the best 2 runs or named by --pair" in data["pairs"]["remark"]


def test_section_data_separates_costs_with_pose(tmp_path: Path) -> None:
    """Would catch the cost of landmarks and pose together in the figure of the cost of landmarks."""
    for job, files in enumerate((["benchmark"], ["benchmark", "benchmark_pose"])):
        folder = write_run(tmp_path / "sweep" / str(job), config=with_values(CONFIG, crop__size=job + 1))
        for factor, file in enumerate(files, start=1):
            numbers = {"macs": 1_000_000 * factor, "latency_p50_ms": 10 * factor, "cpu": "EPYC"}
            (folder / f"{file}.json").write_text(json.dumps(numbers))
    costs = data_of(tmp_path / "sweep")[1]["costs"]
    assert {cost["title"]: cost["values"] for cost in costs} == {
        "MACs": [1, 1],
        "Latency": [10, 10],
        "MACs with pose": [None, 2],
        "Latency with pose": [None, 20],
    }


def test_section_data_compares_the_common_faces(tmp_path: Path) -> None:
    """Would catch runs compared by row number although a photo is missing in one of them."""
    for job in ("0", "1"):
        config = with_values(CONFIG, crop__size=int(job) + 1)
        write_results(write_run(tmp_path / "sweep" / job, config=config, measured=False), 2, 1, faces=10)
    file = tmp_path / "sweep" / "1" / "faces.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], *lines[5:]]) + "\n")
    pairs = data_of(tmp_path / "sweep")[1]["pairs"]
    for b, a, numbers in ((0, 1, "(of 6 and 10)"), (1, 0, "(of 10 and 6)")):
        line, entries = pairs["of"][b][a]
        assert pairs["lines"][line].endswith(f"the 6 common faces {numbers}.")
        assert {tuple(entry[:3]) for entry in entries} == {(0, 0, 0)}


def test_section_data_holds_the_curves_of_detectors(tmp_path: Path) -> None:
    """Would catch the curve of another run, fractions on an axis in percent, or a tooltip unlike the table."""
    for name, quality in (("good", 0.9), ("bad", 0.6)):
        write_detector(tmp_path / name, quality)
    write_detector(tmp_path / "old", 0.3, curves=())
    table, data = data_of(tmp_path / "*")
    assert [run.get("detections", {}).keys() for run in data["runs"]] == [{"ap50", "wider_easy"}] * 2 + [set()]
    faces = {each["metric"]: each for each in figures_of_detections()["faces"]}
    assert list(faces) == ["ap50", "wider_easy", "wider_medium", "wider_hard"]
    _, *cells = build_cells(compare(table.runs, ["ap50", "recall_fppi_01", "recall_fppi_1"])[0])
    for place, quality in enumerate((90, 60)):
        (recall, precision), (false, found) = data["runs"][place]["detections"]["ap50"]
        assert (recall[0], recall[-1], precision[0], precision[-1]) == (0, quality, 100, 50)
        assert false[0] == 0.01 and 8 < false[-1] <= 10 and sorted(found) == found and found[-1] < quality
        texts = [data["rows"][place]["metrics"][name][3] for tips in faces["ap50"]["tips"] for name in tips]
        shown = [line for line in cells[place] if line.number]
        assert texts == [f"{cell.text} %" + f" ({cell.below})" * bool(cell.below) for cell in shown] and len(shown) == 3
    assert data["groups"][0]["axis"] == "ap50, %" and data["groups"][0]["items"][0][0] == "under 16 px"
