import json
import math
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_folders import CONFIG, run_compare, with_values, write_results, write_run

from facelab.comparison.grid import build_cells
from facelab.comparison.group import Table, compare
from facelab.comparison.page import distribution, figures_of_curves, pareto, read_curves, section_data, thin, write_page
from facelab.comparison.pairs import compare_pair, pair_cells, pair_line, paired_metrics
from facelab.comparison.read import read_runs
from facelab.metrics.landmarks import percentile

CHROMIUM = shutil.which("chromium")
BACKBONES = {"mobilenetv2_100": (1.9, 0.58e9, 21.0), "resnet18": (1.8, 2.44e9, 38.0), "resnet50": (1.7, 5.6e9, 91.0)}


def grid_of_runs(folder: Path, *, seeds: int, faces: int, rates: tuple[float, ...] = (1e-4, 5e-4)) -> Path:
    """Write a sweep over backbones, learning rates and seeds, with one failed job and one that never started."""
    cells = {}
    for name, (error, macs, latency) in BACKBONES.items():
        for rate in rates:
            for seed in range(1, seeds + 1):
                job = str(len(cells))
                cells[job] = [f"backbone={name}", f"optimizer.lr={rate}", f"seed={seed}"]
                config = with_values(CONFIG, seed=seed, datamodule__seed=seed, backbone__name=name, monitor={})
                config |= {"optimizer": {"lr": rate}, "monitor": {"name": "val/nme_box", "mode": "min"}}
                config["model"]["backbone"]["name"] = name
                write_run(folder / job, config=config, measured=False)
                wobble = 0.03 * math.sin(7 * seed + len(name)) + 0.2 * (rate < 3e-4) + 5 * rate
                write_results(folder / job, error + wobble, int(job) + 1, faces=faces, macs=macs, latency=latency)
    failed = {"state": "failed", "reason": "OutOfMemoryError: CUDA out of memory"}
    write_run(folder / str(len(cells)), status=failed, measured=False)
    cells |= {str(len(cells) + i): [f"backbone=hrnet{18 + i}", "seed=1"] for i in range(2)}
    (folder / "sweep.json").write_text(json.dumps({"stamp": folder.name, "overrides": [], "cells": cells}))
    return folder


# Numbers


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


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep of twelve measured runs (six settings, two seeds), a failed one and one that never started."""
    return grid_of_runs(tmp_path_factory.mktemp("logs") / "2026-11-20_10-00-00", seeds=2, faces=80)


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
    monkeypatch.setattr("facelab.comparison.page.MOST_PAIRS", 30)
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


# The page


def write_and_read_page(folder: Path, file: Path, pictures: int = 6) -> str:
    """Write the page of a sweep and return its text."""
    runs = read_runs([folder])
    write_page(file, runs, compare(runs, None), pictures)
    return file.read_text(encoding="utf-8")


def test_write_page_escapes_names(tmp_path: Path) -> None:
    """Would catch a name, setting, state or reason that is run as a script, or that ends the embedded data."""
    evil = "</script><script>document.title='bitten'</script><img src=x onerror=alert(1)>"
    name = evil.replace("/", "\u2215")
    config = with_values(CONFIG, backbone__name=evil)
    write_results(write_run(tmp_path / "runs" / name, config=config, measured=False), 2, 1, faces=10)
    write_results(write_run(tmp_path / "runs" / "tame", measured=False), 2, 2, faces=10)
    status = {"state": evil, "reason": evil}
    write_run(tmp_path / "runs" / f"failed{name}", config=config, status=status, measured=False)
    text = write_and_read_page(tmp_path / "runs" / "*", tmp_path / "page.html")
    assert text.count("<script") == 2 and "<img" not in text and text.count("</script>") == 2
    assert "&lt;script&gt;" in text and "\\u003cscript>" in text
    assert re.search(r"script-src 'sha256-[^' ]+'\"", text)
    if CHROMIUM:
        rendered = browse(tmp_path, text)
        assert "<title>3 runs compared</title>" in rendered and 'role="alert" hidden' in rendered


def test_write_page_embeds_everything(sweep: Path, tmp_path: Path) -> None:
    """Would catch a page that loads a font or a script, and is empty without a network."""
    text = write_and_read_page(sweep, tmp_path / "page.html")
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", text)
    assert "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text


def test_write_page_shows_tables_without_scripts(sweep: Path, tmp_path: Path) -> None:
    """Would catch a page without unmeasured runs or the runs of a mean, and a paper column for another test set."""
    text = write_and_read_page(sweep, tmp_path / "page.html")
    assert "14 runs compared" in text and "12 finished, 1 failed, 1 missing" in text
    assert "OutOfMemoryError: CUDA out of memory" in text and "backbone=hrnet19 seed=1" in text
    assert text.count('class="single"') == 12 and "2 seeds</button>" in text
    assert "pooled standard deviation" in text and ">paper<" not in text  # 80 faces are not the official test set


def test_write_page_shows_published_results_for_an_official_test_set(tmp_path: Path) -> None:
    """Would catch a page that leaves out the number of the paper, or its source."""
    folder = write_run(tmp_path / "a", measured=False)
    write_results(folder, 2, 1, faces=2500)
    write_run(tmp_path / "b", measured=False)
    text = write_and_read_page(tmp_path / "*", tmp_path / "page.html")
    assert "<span>4.57</span>" in text and "Jin, Liao, Shao, IJCV 2021" in text
    assert "Published results on these faces" in text and "LAB" in text


def test_write_page_limits_pictures(tmp_path: Path) -> None:
    """Would catch pictures on a page that should have none, and pictures as large as their PNG files."""
    for job in range(3):
        folder = write_run(tmp_path / "sweep" / str(job), config=with_values(CONFIG, crop__size=job), measured=False)
        write_results(folder, 2 + job, job, faces=10)
        (folder / "samples").mkdir()
        noise = np.random.default_rng(job).integers(0, 255, (24, 36, 3), np.uint8)
        Image.fromarray(noise).resize((1152, 768)).save(folder / "samples" / "worst.png")
    (tmp_path / "sweep" / "0" / "samples" / "worst.png").write_bytes(b"no picture")
    pages = {most: write_and_read_page(tmp_path / "sweep", tmp_path / "page.html", most) for most in (0, 2, 6)}
    assert [text.count("data:image/jpeg") for text in pages.values()] == [0, 1, 2]
    assert "Worst faces" not in pages[0] and "worst.png is not a PNG image" in pages[6]
    images = re.findall(r'base64,([^"]+)" width="(\d+)"', pages[6])
    assert all(width == "768" and len(data) < 200_000 for data, width in images)


def test_write_page_accepts_runs_without_metrics(tmp_path: Path) -> None:
    """Would catch a missing page for a sweep whose runs all failed or are still training."""
    folder = write_run(tmp_path / "0", status={"state": "failed", "reason": "?"}, measured=False)
    write_results(folder, 2, 1, faces=10)
    (folder / "metrics.json").unlink()
    text = write_and_read_page(folder, tmp_path / "page.html")
    assert "Runs without metrics" in text and 'data-section="0"' in text and '"train/loss"' in text


def test_compare_script_writes_the_page(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch an option --html that is not passed on, or not mentioned in the output."""
    run_compare(monkeypatch, sweep)
    assert "--html FILE" in capsys.readouterr().out
    run_compare(monkeypatch, sweep, "--html", tmp_path / "new" / "page.html", "--pictures", "0")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!DOCTYPE html>")


# In a browser

READ = """
<iframe id="page" src="page.html" style="width:{width}px;height:900px;border:0"></iframe><pre id="said"></pre>
<script>
const said = {{}};
document.getElementById("page").onload = () => {{
  const page = document.getElementById("page").contentDocument;
  const all = (query) => [...page.querySelectorAll(query)];
  const shown = () => all("tbody:has(input)").filter((body) => !body.hidden);
  const names = () => shown().map((body) => body.rows[0].cells[1].firstChild.textContent);
  const sort = (name) => {{
    all("th button").find((button) => button.textContent === name).click();
    return names();
  }};
  const say = (node, event) => node.dispatchEvent(new Event(event));
  try {{
    said.faults = page.getElementById("faults").textContent;
    said.page = page.documentElement.scrollWidth;
    said.window = page.documentElement.clientWidth;
    said.figures = all("figure").map((figure) => figure.querySelectorAll("path.line, path[fill], rect").length);
    said.titles = all("figure title").map((title) => title.textContent);
    said.legend = all(".legend li").length;
    said.before = names();
    said.sorted = sort("optimizer.lr");
    said.up = sort("nme_box");
    said.down = sort("nme_box");
    const [search] = all("input[type=search]");
    search.value = "RESNET50";
    say(search, "input");
    said.found = names();
    all("[data-draw=shown]")[0].click();
    said.drawn = all(".legend li").length;
    said.closed = all(".single:not([hidden])").length;
    all(".more")[0].click();
    said.open = all(".single:not([hidden])").length;
    const [a, b] = all("select");
    said.names = [...b.options].map((option) => option.textContent.split(":")[0]);
    said.pairs = [[0, 1], [5, 2], [11, 0], [3, 3]].map((chosen) => {{
      [a.selectedIndex, b.selectedIndex] = chosen;
      say(b, "change");
      const rows = all(".pair tr").map((row) => [...row.cells].map((cell) => cell.textContent));
      return [...chosen, rows, page.querySelector(".pair p").textContent];
    }});
    all("label").find((label) => label.textContent.includes("eye corners")).firstChild.click();
    said.ioc = all("figure title").map((title) => title.textContent);
    said.after = page.getElementById("faults").textContent;
  }} catch (error) {{ said.error = String(error); }}
  document.getElementById("said").textContent = JSON.stringify(said);
}};
</script>
"""


def browse(folder: Path, html: str, *options: str) -> str:
    """Return the HTML of a page after its scripts have run."""
    assert CHROMIUM
    (folder / "test.html").write_text(html, encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += ["--virtual-time-budget=5000", f"--user-data-dir={folder}/profile", *options]
    result = subprocess.run(
        [*command, "--dump-dom", (folder / "test.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return result.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1400, 390])
def test_page_works_in_a_browser(sweep: Path, tmp_path: Path, width: int) -> None:
    """Would catch a failing script, an empty figure, a page wider than a phone, or numbers unlike compare.py's."""
    write_and_read_page(sweep, tmp_path / "page.html")
    text = browse(tmp_path, READ.format(width=width), "--window-size=1500,1000")
    results: dict[str, Any] = json.loads(re.search(r'id="said">(.*?)</pre>', text, re.DOTALL)[1])  # type: ignore[index]
    assert "error" not in results and results["faults"] == results["after"] == ""
    assert results["page"] <= results["window"]
    assert len(results["figures"]) == 14 and all(results["figures"])
    assert results["legend"] == results["drawn"] * 3 == 6
    assert results["before"] == results["up"] == results["down"][::-1] and len(results["before"]) == 6
    assert results["sorted"] != results["before"] and set(results["sorted"]) == set(results["before"])
    assert len(results["found"]) == 2 and (results["closed"], results["open"]) == (0, 2)
    table = compare(read_runs([sweep]), None)[0]
    of_name = {run.name: run for run in table.runs}
    assert len(results["names"]) == 12
    for place_a, place_b, rows, line in results["pairs"][:3]:
        a, b = (of_name[results["names"][place]] for place in (place_a, place_b))
        pair = compare_pair(a, b, paired_metrics(()))
        assert rows == [[cell.text for cell in row] for row in pair_cells(pair, b.metrics)] and line == pair_line(pair)
    assert results["pairs"][3][2:] == [[], "A and B are the same run."]
    heading, first, *_ = build_cells(table)
    for metric, titles in (("nme_box", results["titles"]), ("nme_ioc", results["ioc"])):
        cell = first[[each.text for each in heading].index(metric)]
        assert f"resnet50, lr 0.0005 (2 seeds): {cell.text} % ({cell.below}) at 5600.0 M" in titles


@pytest.mark.slow
def test_write_page_handles_hundreds_of_runs(tmp_path: Path) -> None:
    """Would catch minutes for three hundred runs, or a page that no browser opens."""
    rates = tuple(1e-4 * 1.05**i for i in range(50))
    folder = grid_of_runs(tmp_path / "sweep", seeds=2, faces=500, rates=rates)
    start = time.perf_counter()
    text = write_and_read_page(folder, tmp_path / "page.html")
    assert time.perf_counter() - start < 60
    assert len(text) < 1_500_000 and text.count('<input type="checkbox"') == 150
    if CHROMIUM:
        rendered = browse(tmp_path, text)
        assert rendered.count('<li data-row="') == 8 and 'role="alert" hidden' in rendered
