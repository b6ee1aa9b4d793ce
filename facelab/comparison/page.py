"""Runs side by side as one HTML page that needs nothing beside it: no network, no fonts, no other file.

The tables are written here. The figures are drawn in the browser by ``page.js`` from the numbers embedded in the page,
so that runs can be chosen there.
"""

import base64
import hashlib
import io
import json
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from facelab.comparison.grid import (
    Cell,
    brief_setting,
    disagreement,
    grid,
    grid_without_numbers,
    headings,
    one_line,
    remarks,
)
from facelab.comparison.group import SORT_BY, Row, Table, cost_of, machines_of, row_of, typed_apart
from facelab.comparison.pairs import NORMALISERS, RESAMPLES, Faces, read_errors, shared
from facelab.comparison.read import LATENCY, POSE, STAMP, Run
from facelab.errors import RunError
from facelab.files import read_bytes, read_table, replacing
from facelab.run_folder import RunFolder

LOSS, MONITOR = "train/loss", "monitor.name"
CURVE_POINTS = 150
"""Most points of a curve; longer ones are averaged over equal stretches."""
MOST_FACES = 600_000
"""Errors per normaliser that a page holds; of further runs, the worst, it has no distribution."""
DRAWN = 8
"""Rows that are drawn at first: as many as there are colours."""
LONG = 40
"""Characters from which on a cell is folded."""
PICTURE_WIDTH, PICTURE_QUALITY = 768, 72
"""Pixels, and of JPEG: a picture of the worst faces takes about 0.1 MB."""
PICTURE_HEIGHT = 10 * PICTURE_WIDTH
"""Pixels of a picture at most; a narrow one is shrunk to it."""
LARGEST_PICTURE, MOST_PIXELS = 2**26, 50_000_000
"""Bytes and pixels of a picture that is opened; one of 24 faces has 1 MB and 0.9 million pixels."""
LAST_STEP = 2**53
"""Steps and epochs of a curve are fewer: JSON has them exactly."""
GROUPS = {
    "nme_box_yaw_": ("Head pose", "absolute yaw"),
    "nme_ioc_tag_": ("Subset", "the dataset's tags"),
    "nme_ioc_region_": ("Region", "part of the face"),
    "nme_box_size_": ("Face size", "true box in the photo"),
}
"""How the names of metrics of a part of the faces begin, and what parts them."""
WORDS = {
    "0_30": "0–30°",
    "30_60": "30–60°",
    "60_90": "over 60°",
    "0_32": "under 32 px",
    "32_64": "32–64 px",
    "64_128": "64–128 px",
    "128_up": "128 px and more",
}


class Curves(NamedTuple):
    """What a run logged while it trained."""

    steps_per_epoch: float
    values: dict[str, tuple[list[int], list[float]]]  # name to optimizer steps and values


# Numbers


def read_curves(file: Path, names: Iterable[str]) -> Curves:
    """Read some columns of ``metrics.csv``.

    A last line without its end is one that is just being written, and is left out. Where a step was logged twice, as
    after a resumption, the later value holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line or a number that is not of such a file, with its place.
    """
    rows = read_table(file, torn=True)
    heading = next(rows, [])
    if not {"epoch", "step"} <= {*heading}:
        raise ValueError(f"{file}:1: has no columns epoch and step")
    places = {name: heading.index(name) for name in names if name in heading}
    epoch_at, step_at = heading.index("epoch"), heading.index("step")
    found: dict[str, dict[int, float]] = {name: {} for name in places}
    rate = 0.0
    for number, row in enumerate(rows, start=2):
        try:
            if row[epoch_at] and row[step_at]:
                rate = max(rate, (_count(row[step_at]) + 1) / (_count(row[epoch_at]) + 1))
            for name, place in places.items():
                if row[place]:
                    found[name][_count(row[step_at])] = float(row[place])
        except (ValueError, IndexError) as error:
            raise ValueError(f"{file}:{number}: {error}") from error
    return Curves(rate or 1.0, {name: (sorted(by), [by[step] for step in sorted(by)]) for name, by in found.items()})


def _count(text: str) -> int:
    if not 0 <= (number := int(text)) < LAST_STEP:
        raise ValueError(f"{text[:40]} is no step and no epoch")
    return number


def thin(steps: Sequence[int], values: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """Shorten a curve to at most so many points: means over equal stretches."""
    size = max(1, math.ceil(len(steps) / most))
    starts = range(0, len(steps), size)

    def means(numbers: Sequence[float]) -> list[float]:
        return [sum(part) / len(part) for part in (numbers[start : start + size] for start in starts)]

    return means(steps), means(values)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points of which no other is better in one number and at least as good in the other, the cheapest first.

    Args:
        points: pairs of which less is better; one with a NaN or an infinite number is never of the front.
    """
    front: list[int] = []
    known = [index for index, point in enumerate(points) if all(map(math.isfinite, point))]
    for index in sorted(known, key=points.__getitem__):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def labels_of(table: Table) -> list[str]:
    """Give the rows short names for legends, no two alike.

    Without the stamp; the jobs of a sweep by the settings in which the runs differ, or as they were typed.
    """
    typed = typed_apart(table)
    labels = [one_line(_label(row, table, typed.get(row.runs[0].folder, ""))) for row in table.rows]
    often = Counter(labels)
    return [
        label if often[label] == 1 else f"{label} · {one_line(row.name)}"
        for label, row in zip(labels, table.rows, strict=True)
    ]


def _label(row: Row, table: Table, typed: str) -> str:
    name = STAMP.sub("", row.name)
    keys = [key for key in table.settings if key != "seed" or len(row.runs) == 1]
    values = {key: text for key in keys if (text := brief_setting(row, key))}
    if "/" not in row.name or not (values or typed):
        return name
    words = (
        [typed]
        if typed
        else [
            text if key.endswith(("name", "_target_")) else f"{key.rpartition('.')[2]} {text}"
            for key, text in list(values.items())[:4]
        ]
    )
    return ", ".join(words) + (f" ({len(row.runs)} seeds)" if len(row.runs) > 1 else "")


# Data for the figures


def _plain(value: float | None) -> float | None:
    """Round a number to five digits; None for one that JSON does not have."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def _ends(row: Row, metric: str) -> list[float | None]:
    """Give the ends of a whisker: a deviation to both sides of a mean over seeds, the 95 % interval of a single run."""
    low, high = row.intervals.get(metric, (math.nan, math.nan))
    if len(row.runs) > 1:
        reach = row.deviations.get(metric, math.nan)
        low, high = row.metrics[metric] - reach, row.metrics[metric] + reach
    return [_plain(low), _plain(high)] if math.isfinite(low) and math.isfinite(high) else [None, None]


def _shown(table: Table) -> list[str]:
    """List the metrics that the figures show."""
    return [
        name
        for name in dict.fromkeys(name for run in table.runs for name in run.metrics)
        if name in NORMALISERS.values() or (name.startswith((*GROUPS,)) and name != "nme_box_yaw_mean")
    ]


def _groups(table: Table) -> list[dict[str, Any]]:
    groups = []
    for prefix, (title, what) in GROUPS.items():
        items = []
        for name in _shown(table):
            counts = sorted({run.faces(name) for run in table.runs if run.ranked} or {0})
            if name.startswith(prefix) and counts[-1]:
                text = name.removeprefix(prefix)
                span = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
                items.append([WORDS.get(text, text.replace("_", " ")), span, name])
        if items:
            groups.append({"title": title, "what": what, "metric": prefix[:7], "items": items})
    return groups


def _costs(table: Table) -> list[dict[str, Any]]:
    """Give each cost a figure; latencies of each machine have their own, as has what includes the head's pose."""
    rows = table.rows
    figures = []
    for of, more in (("", ""), (POSE, " with pose")):
        macs = [cost_of(row, f"{of}macs") * 1e-6 for row in rows]
        figures.append((f"MACs{more}", "M", "multiply-adds for one face", macs))
        latency = of + LATENCY
        for machine in machines_of(table, latency):
            there = [[run for run in row.runs if run.machine(latency) == machine] for row in rows]
            values = [cost_of(row_of(runs), latency) if runs else math.nan for runs in there]
            figures.append((f"Latency{more}", "ms", f"median at batch 1; {machine}", values))
    return [
        {
            "title": title,
            "unit": unit,
            "about": about,
            "values": list(map(_plain, values)),
            "fronts": {
                metric: pareto([(x, row.metrics.get(metric, math.nan)) for x, row in zip(values, rows, strict=True)])
                for metric in NORMALISERS.values()
            },
        }
        for title, unit, about, values in figures
        if any(map(math.isfinite, values))
    ]


def _curves_of(run: Run) -> dict[str, Any]:
    names = [LOSS, str(run.config.get(MONITOR, "val/nme_box"))]
    try:
        curves = read_curves(RunFolder(run.folder).curves, names)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        return {"faults": [str(error)]}
    thinned = {name: thin(*curve, CURVE_POINTS) for name, curve in curves.values.items()}
    return {
        "rate": curves.steps_per_epoch,
        "curves": {name: [list(map(_plain, part)) for part in curve] for name, curve in thinned.items() if curve[0]},
    }


def _errors_of(run: Run, first: Faces | None) -> tuple[dict[str, Any], Faces | None]:
    """Encode the errors of a run in the order of the first run's faces, float32 in base64; NaN for a missing face."""
    if not RunFolder(run.folder).faces.exists():
        return {}, first
    try:
        faces = read_errors(run)
    except (OSError, RunError) as error:
        return {"faults": [str(error)]}, first
    first = first or faces
    rows_first, rows = shared(first, faces)
    embedded = {}
    for normaliser in NORMALISERS:
        values = np.full(len(first.names), np.nan, "<f4")
        with np.errstate(over="ignore"):  # infinite in float32
            values[rows_first] = faces.errors[normaliser][rows]
        embedded[normaliser] = base64.b64encode(values.tobytes()).decode()
    return {"errors": embedded}, first


def section_data(table: Table) -> dict[str, Any]:
    """Collect what ``page.js`` needs to draw the figures of a table."""
    index = {id(run): place for place, run in enumerate(table.runs)}
    metrics = _shown(table)
    rows = [
        {
            "label": label,
            "runs": [index[id(run)] for run in row.runs],
            "metrics": {
                name: [_plain(row.metrics[name]), *_ends(row, name)] for name in metrics if name in row.metrics
            },
        }
        for row, label in zip(table.rows, labels_of(table), strict=True)
    ]
    runs, first, left = [], None, MOST_FACES
    for run in table.runs:
        errors: dict[str, Any] = {}
        if left > 0:
            errors, first = _errors_of(run, first)
            left -= len(first.names) if first and "errors" in errors else 0
        runs.append(_named(run, _curves_of(run), errors))
    return {
        "rows": rows,
        "runs": runs,
        "groups": _groups(table),
        "costs": _costs(table),
        "small": left <= 0,
    }


def _named(run: Run, *parts: dict[str, Any]) -> dict[str, Any]:
    """Join what is embedded of a run: its name, what could not be read of it, and the numbers."""
    faults = [one_line(fault) for part in parts for fault in part.get("faults", [])]
    numbers = {key: value for part in parts for key, value in part.items()}
    return {"name": one_line(run.name), **numbers, "faults": faults}


def _unmeasured_data(runs: Sequence[Run]) -> dict[str, Any]:
    """Collect the curves of runs without numbers."""
    found = [(run, _curves_of(run)) for run in runs]
    drawn = [(run, curves) for run, curves in found if curves.get("curves") or curves.get("faults")]
    return {
        "rows": [
            {"label": one_line(f"{STAMP.sub('', run.name)} ({run.state})"), "runs": [place], "metrics": {}}
            for place, (run, _) in enumerate(drawn)
        ],
        "runs": [_named(run, curves) for run, curves in drawn],
        "groups": [],
        "costs": [],
        "small": False,
    }


# HTML


def write_page(path: Path, runs: Sequence[Run], tables: Sequence[Table], pictures: int) -> None:
    """Write the page.

    Args:
        path: of the file.
        runs: all that were read.
        tables: of :func:`facelab.comparison.group.compare`.
        pictures: in each table, the runs whose worst faces are shown.
    """
    missing = [run for run in runs if not run.protocol]
    sections = [section_data(table) for table in tables]
    unmeasured = _unmeasured_data(missing)
    body = [
        _section(number, heading, table, data, pictures)
        for number, (heading, table, data) in enumerate(zip(headings(tables), tables, sections, strict=True), start=1)
    ]
    if missing:
        sections += [unmeasured] * bool(unmeasured["rows"])
        body.append(_unmeasured(runs, has_curves=bool(unmeasured["rows"]), number=len(sections)))
    text = _document(runs, tables, "\n".join(body), {"resamples": RESAMPLES, "drawn": DRAWN, "sections": sections})
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _document(runs: Sequence[Run], tables: Sequence[Table], body: str, data: dict[str, Any]) -> str:
    here = Path(__file__)
    style, script = (here.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".css", ".js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Nothing is fetched and no other script runs, whatever stands in the text.
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; img-src data:; "
    policy += f"script-src 'sha256-{digest}'"
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    title = f"{len(runs)} run{'s' * (len(runs) != 1)} compared"
    states = ", ".join(
        f"{count} {one_line(state)}" for state, count in Counter(run.state for run in runs).most_common()
    )
    links = [(f"table-{number}", _short_heading(table)) for number, table in enumerate(tables, start=1)]
    links += [("no-numbers", "without numbers")] * any(not run.protocol for run in runs)
    contents = "".join(f'<li><a href="#{place}">{escape(text)}</a></li>' for place, text in links)
    warning = disagreement(tables)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="quiet">{escape(states)} · {time.strftime("%Y-%m-%d %H:%M")}</p>
{f"<nav aria-label='Tables'><ul>{contents}</ul></nav>" if len(links) > 1 else ""}
{f'<p class="quiet">{escape(warning)}</p>' if warning else ""}
<noscript><p>The figures are drawn by a script in this page, which is switched off; the tables are whole.</p></noscript>
<pre id="faults" role="alert" hidden></pre>
</header>
<main>
{body}
</main>
<script type="application/json" id="data">{embedded}</script>
<script>{script}</script>
</body>
</html>
"""


def _short_heading(table: Table) -> str:
    return "{} {}".format(*(one_line(str(table.protocol.get(key, "?"))) for key in ("dataset", "split")))


def _section(number: int, heading: str, table: Table, data: dict[str, Any], pictures: int) -> str:
    what = ", ".join(part.strip() for part in heading.split(",")[2:])
    count = one_line(f"{table.protocol.get('faces', '?')} faces")
    name = f"table-{number}"
    return f"""<section id="{name}" aria-labelledby="{name}-title" data-section="{number - 1}">
<h2 id="{name}-title">{escape(_short_heading(table))} <span class="quiet">{escape(count)}</span></h2>
<p class="quiet">{escape(what)}</p>
{_toolbar(len(table.rows)) if len(table.rows) > 1 else ""}
{_results(table, [row["label"] for row in data["rows"]])}
{"".join(f'<p class="quiet note">{escape(line)}</p>' for line in remarks(table))}
{_published(table)}
<div class="figures"></div>
{_pictures(table, pictures)}
</section>"""


def _toolbar(rows: int) -> str:
    return f"""<div class="tools">
<label>Filter <input type="search" placeholder="part of a name or setting"></label>
<span class="quiet" role="status" data-count>{rows} rows</span>
<span class="buttons">Draw
<button type="button" data-draw="best">best {min(rows, DRAWN)}</button>
<button type="button" data-draw="shown">all shown</button>
<button type="button" data-draw="none">none</button></span>
</div>"""


def _results(table: Table, labels: Sequence[str]) -> str:
    heading, *lines = grid(table, each=True)
    bodies, at = [], 0
    for place, row in enumerate(table.rows):
        singles = len(row.runs) if len(row.runs) > 1 else 0
        line, inner = lines[at], lines[at + 1 : at + 1 + singles]
        at += 1 + singles
        box = f'<input type="checkbox" data-row="{place}" aria-label="draw {escape(labels[place])}">'
        more = f'<button type="button" class="more" aria-expanded="false">{singles} seeds</button>' if inner else ""
        first = f'<th scope="row">{_name(line[0].text.removesuffix(f" ({singles} seeds)"), more)}</th>'
        shown = f'<tr><td class="pick">{box}</td>{first}{_cells(line[1:])}</tr>'
        hidden = "".join(
            f'<tr class="single" hidden><td></td><th scope="row">{_name(name.text, "")}</th>{_cells(cells)}</tr>'
            for name, *cells in inner
        )
        bodies.append(f"<tbody>{shown}{hidden}</tbody>")
    return _scroll(f"<table>{_head(heading)}{''.join(bodies)}</table>", "Results")


def _name(text: str, beside: str) -> str:
    """Write the name of a run; its stamp or its sweep small below."""
    sweep, _, job = text.rpartition("/")
    stamp = sweep or (found[0].rstrip("_") if (found := STAMP.match(text)) else "")
    below = f"<small>{escape(stamp)}</small>" if stamp else ""
    return f"<span>{escape(job if sweep else STAMP.sub('', text))}</span>{beside}{below}"


def _head(cells: Sequence[Cell]) -> str:
    def heading(cell: Cell) -> str:
        name = re.sub(r"(\.|_(?=yaw_|tag_|region_|size_))", r"\1<wbr>", escape(cell.text))
        below = f"<small>{escape(cell.below)}</small>" if cell.below else ""
        button = f'<button type="button" data-sort>{name}</button>'
        return f'<th scope="col" class="{"number" if cell.number else "word"}">{button}{below}</th>'

    pick = '<td class="pick"></td>'
    return f"<thead><tr>{pick}{''.join(map(heading, cells))}</tr></thead>"


def _cells(cells: Sequence[Cell]) -> str:
    def cell_html(cell: Cell) -> str:
        text = f"<b>{escape(cell.text)}</b>" if cell.bold else f"<span>{escape(cell.text)}</span>"
        below = f"<small>{escape(cell.below).replace('..', '–')}</small>" if cell.below else ""
        kind = "number" if cell.number else "long word" if len(cell.text) > LONG else "word"
        return f'<td class="{kind}">{text}{below}</td>'

    return "".join(map(cell_html, cells))


def _scroll(table: str, name: str) -> str:
    """Put a table into a box of its own that scrolls, by keyboard as well, so that the page does not."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{table}</div>'


def _plain_table(heading: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int], name: str) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ("number" if place in numbers else "long word" for place in range(len(cells)))
        return "".join(f'<{tag} class="{kind}">{escape(text)}</{tag}>' for kind, text in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return _scroll(f"<table><thead><tr>{line('th', heading)}</tr></thead><tbody>{body}</tbody></table>", name)


def _published(table: Table) -> str:
    if not table.published:
        return ""
    rows = [
        [entry.method, entry.backbone or "-", entry.metric, f"{100 * entry.value:.2f}", entry.source]
        for entry in table.published
    ]
    content = _plain_table(["method", "backbone", "metric", "%", "source"], rows, [3], "Published numbers")
    return f"<details><summary>Published on these faces: {len(rows)} numbers</summary>{content}</details>"


def _unmeasured(runs: Sequence[Run], *, has_curves: bool, number: int) -> str:
    heading, *rows = [[cell.text for cell in row] for row in grid_without_numbers(runs)]
    state = heading.index("state")
    body = "".join(
        "<tr>{}</tr>".format(
            "".join(
                f'<td class="word"><span class="state" data-state="{escape(text)}">{escape(text)}</span></td>'
                if place == state
                else f'<td class="{"long word" if len(text) > LONG else "word"}">{escape(text)}</td>'
                for place, text in enumerate(row)
            )
        )
        for row in rows
    )
    head = "".join(f'<th scope="col" class="word">{escape(text)}</th>' for text in heading)
    table = _scroll(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", "Runs without numbers")
    data = f' data-section="{number - 1}"' if has_curves else ""
    return f"""<section id="no-numbers" aria-labelledby="no-numbers-title"{data}>
<h2 id="no-numbers-title">Runs without numbers <span class="quiet">{len(rows)}</span></h2>
{table}
{'<div class="figures"></div>' if has_curves else ""}
</section>"""


def _pictures(table: Table, most: int) -> str:
    figures: list[str] = []
    labels = dict(zip((row.name for row in table.rows), labels_of(table), strict=True))
    for row in table.rows:
        there = [run for run in row.runs if run.ranked and RunFolder(run.folder).worst_picture.exists()]
        if there and len(figures) < most:
            run = min(there, key=lambda run: run.metrics.get(SORT_BY, math.inf))
            label, name = labels[row.name], one_line(run.name)
            caption = name if name.endswith(label) else f"{label}: {name}"
            figures.append(_picture(RunFolder(run.folder).worst_picture, caption))
    if not figures:
        return ""
    return f"""<h3>Worst faces</h3>
<p class="quiet note">Of each run those with the largest nme_box; true points green, predicted points red.</p>
<div class="pictures">{"".join(figures)}</div>"""


def _picture(file: Path, caption: str) -> str:
    try:
        image = read_picture(file)
    except ValueError as error:
        return f"<figure><figcaption>{escape(f'{caption}: {one_line(str(error))}')}</figcaption></figure>"
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=PICTURE_QUALITY, optimize=True)
    width, height = image.size
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    image_tag = f'<img src="{source}" width="{width}" height="{height}" alt="worst faces of {escape(caption)}">'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{image_tag}</figure>"


def read_picture(file: Path) -> Image.Image:
    """Read a picture and shrink it to what the page shows.

    Only PNG is decoded, which is what a test writes: some of the formats that Pillow knows start other programs.

    Raises:
        ValueError: the file cannot be read, or is no such picture, a broken one, or a larger one, with its name.
    """
    try:
        content = io.BytesIO(read_bytes(file, LARGEST_PICTURE))
        quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        with quiet, Image.open(content, formats=["PNG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"has {image.width} x {image.height} pixels")
            image.thumbnail((PICTURE_WIDTH, PICTURE_HEIGHT))
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{file.name} is no PNG image") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file.name}: {error}") from error
