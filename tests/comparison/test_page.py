import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_folders import CONFIG, grid_of_runs, run_compare, with_values, write_detector, write_results, write_run

from facelab.comparison.figures import DETECTION_FACES
from facelab.comparison.grid import build_cells
from facelab.comparison.group import compare
from facelab.comparison.page import write_page
from facelab.comparison.pairs import compare_pair, pair_cells, pair_line, paired_metrics
from facelab.comparison.read import read_runs

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep of twelve measured runs (six settings, two seeds), a failed one and one that never started."""
    return grid_of_runs(tmp_path_factory.mktemp("logs") / "2026-11-20_10-00-00", seeds=2, faces=80)


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


READ_DETECTORS = """
<iframe id="page" src="page.html" style="width:{width}px;height:900px;border:0"></iframe><pre id="said"></pre>
<script>
document.getElementById("page").onload = () => {{
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  const all = (query) => [...page.querySelectorAll(query)];
  const text = (query) => all(query).map((node) => node.textContent.trim());
  const drawn = (figure) => [...figure.querySelectorAll("path.line")].map((line) => line.getAttribute("d"));
  const lines = () => all("figure").map(drawn);
  const figures = lines(), titles = text("figure g > title"), texts = text("figure"), labels = text("label");
  all("label")[labels.indexOf("easy")].firstChild.click();
  const easy = lines(), faults = page.getElementById("faults").textContent, notes = text("p.note");
  const said = {{ figures, titles, texts, labels, easy, faults, notes, spare: root.clientWidth - root.scrollWidth }};
  document.getElementById("said").textContent = JSON.stringify(said);
}};
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1400, 390])
def test_page_draws_the_curves_of_detectors(tmp_path: Path, width: int) -> None:
    """Would catch an empty plot, a run without its line, lists that cannot be chosen, or a page wider than a phone."""
    write_detector(tmp_path / "runs" / "good", 0.9)
    write_detector(tmp_path / "runs" / "fair", 0.6, curves=("ap50",))
    write_detector(tmp_path / "runs" / "old", 0.3, curves=())
    write_and_read_page(tmp_path / "runs" / "*", tmp_path / "page.html")
    text = browse(tmp_path, READ_DETECTORS.format(width=width), "--window-size=1500,1000")
    said: dict[str, Any] = json.loads(re.search(r'id="said">(.*?)</pre>', text, re.DOTALL)[1])  # type: ignore[index]
    assert said["faults"] == "" and said["spare"] >= 0
    assert [len(lines) for lines in said["figures"]] == [2, 2, 0] and "NaN" not in str(said["figures"])
    assert [len(lines) for lines in said["easy"]] == [1, 1, 0]
    assert "100ap50, %" in said["texts"][2]  # the axis of values up to 100 % has no mark at 150
    assert {"all", "easy"} < {*said["labels"]} and "medium" not in said["labels"]
    assert all("Curves are missing: old" in text for text in said["texts"][:2])
    assert "false detections per photo (log scale)" in said["texts"][1]
    table = compare(read_runs([tmp_path / "runs" / "*"]), ["ap50", "recall_fppi_01", "recall_fppi_1"])[0]
    _, first, *_ = build_cells(table)
    ap, few, more = (cell.text for cell in first if cell.number)
    assert said["titles"][0] == f"good: ap50 {ap} %"
    assert said["titles"][2] == f"good: recall_fppi_01 {few} % (20.00..99.00), recall_fppi_1 {more} % (20.00..99.00)"
    assert not any("MACs" in note for note in said["notes"])  # a detector has no cost of one face


def test_write_page_limits_the_curves_of_detectors(tmp_path: Path) -> None:
    """Would catch a page that grows with the number of detections."""
    sizes = []
    for runs in (1, 2):
        write_detector(tmp_path / "runs" / str(runs), 0.9, curves=tuple(DETECTION_FACES))
        sizes.append(len(write_and_read_page(tmp_path / "runs" / "*", tmp_path / "page.html")))
    assert sizes[1] - sizes[0] < 20_000


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
