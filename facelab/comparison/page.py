"""Comparison of runs as one self-contained HTML page: it needs no network, no fonts and no other file.

``page.js`` draws the rows that a reader selects. It contains no statistics, and formats only the numbers of axes.
"""

import base64
import hashlib
import io
import json
import re
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from facelab.comparison.figures import (
    figures_of_curves,
    figures_of_detections,
    figures_of_errors,
    labels_of,
    section_data,
    unmeasured_data,
)
from facelab.comparison.grid import Cell, build_cells, disagreement, grid_without_numbers, headings, one_line, remarks
from facelab.comparison.group import Table
from facelab.comparison.read import STAMP, Run
from facelab.files import read_bytes, replacing
from facelab.run_folder import RunFolder

DRAWN = 8
"""Number of rows that are drawn at first, one per colour."""
LONG = 40
"""Number of characters beyond which the text of a cell is folded."""
PICTURE_WIDTH, PICTURE_QUALITY = 768, 72
"""Maximum width in pixels and JPEG quality: a picture of the worst faces then has about 0.1 MB."""
PICTURE_HEIGHT = 10 * PICTURE_WIDTH
"""Maximum height of a picture in pixels, which limits narrow pictures."""
MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS = 2**26, 50_000_000
"""Maximum size of a picture file in bytes and in pixels; a picture of 24 faces has 1 MB and 0.9 million pixels."""


def write_page(
    path: Path, runs: Sequence[Run], tables: Sequence[Table], pictures: int, named: Sequence[Run] = ()
) -> None:
    """Write the page.

    Args:
        path: file to write.
        runs: all runs of the comparison.
        tables: result of :func:`facelab.comparison.group.compare`.
        pictures: number of runs per table whose worst faces are shown.
        named: runs that are compared face by face with all others of their table; the best ones always are.
    """
    missing = [run for run in runs if not run.protocol]
    curves = figures_of_curves(runs)
    sections = [section_data(table, curves, {run.folder for run in named}) for table in tables]
    unmeasured = unmeasured_data(missing, curves)
    body = [
        _section(number, heading, table, data, pictures)
        for number, (heading, table, data) in enumerate(zip(headings(tables), tables, sections, strict=True), start=1)
    ]
    if missing:
        sections += [unmeasured] * bool(unmeasured["rows"])
        body.append(_unmeasured(runs, has_curves=bool(unmeasured["rows"]), number=len(sections)))
    data = {"drawn": DRAWN, "curves": curves, "errors": figures_of_errors(), "detections": figures_of_detections()}
    data["sections"] = sections
    text = _document(runs, tables, "\n".join(body), data)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _document(runs: Sequence[Run], tables: Sequence[Table], body: str, data: dict[str, Any]) -> str:
    """Format the whole page."""
    module = Path(__file__)
    style, script = (module.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".css", ".js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The browser fetches nothing and runs no other script, whatever text the page contains.
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; img-src data:; "
    policy += f"script-src 'sha256-{digest}'"
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    title = f"{len(runs)} run{'s' * (len(runs) != 1)} compared"
    states = ", ".join(
        f"{count} {one_line(state)}" for state, count in Counter(run.state for run in runs).most_common()
    )
    links = [(f"table-{number}", _short_heading(table)) for number, table in enumerate(tables, start=1)]
    links += [("no-numbers", "without metrics")] * any(not run.protocol for run in runs)
    contents = "".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in links)
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
<noscript><p>JavaScript is disabled: the page shows all tables but no figures.</p></noscript>
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
    """Return dataset and split of a table."""
    return "{} {}".format(*(one_line(str(table.protocol.get(key, "?"))) for key in ("dataset", "split")))


def _section(number: int, heading: str, table: Table, data: dict[str, Any], pictures: int) -> str:
    """Format the section of a table."""
    conditions = ", ".join(part.strip() for part in heading.split(",")[2:])
    count = one_line(f"{table.protocol.get(table.noun, '?')} {table.noun}")
    name = f"table-{number}"
    return f"""<section id="{name}" aria-labelledby="{name}-title" data-section="{number - 1}">
<h2 id="{name}-title">{escape(_short_heading(table))} <span class="quiet">{escape(count)}</span></h2>
<p class="quiet">{escape(conditions)}</p>
{_toolbar(len(table.rows)) if len(table.rows) > 1 else ""}
{_results(table, [row["label"] for row in data["rows"]])}
{"".join(f'<p class="quiet note">{escape(line)}</p>' for line in remarks(table))}
{_published(table)}
<div class="figures"></div>
{_pictures(table, pictures)}
</section>"""


def _toolbar(rows: int) -> str:
    """Format the filter and the buttons above a table."""
    return f"""<div class="tools">
<label>Filter <input type="search" placeholder="part of a name or setting"></label>
<span class="quiet" role="status" data-count>{rows} rows</span>
<span class="buttons">Draw
<button type="button" data-draw="best">best {min(rows, DRAWN)}</button>
<button type="button" data-draw="shown">all shown</button>
<button type="button" data-draw="none">none</button></span>
</div>"""


def _results(table: Table, labels: Sequence[str]) -> str:
    """Format a table of results; the rows of single seeds are hidden at first."""
    heading, *lines = build_cells(table, with_single_runs=True)
    bodies, start = [], 0
    for index, row in enumerate(table.rows):
        singles = len(row.runs) if len(row.runs) > 1 else 0
        line, inner = lines[start], lines[start + 1 : start + 1 + singles]
        start += 1 + singles
        box = f'<input type="checkbox" data-row="{index}" aria-label="draw {escape(labels[index])}">'
        more = f'<button type="button" class="more" aria-expanded="false">{singles} seeds</button>' if inner else ""
        first = f'<th scope="row">{_name(line[0].text.removesuffix(f" ({singles} seeds)"), more)}</th>'
        shown = f'<tr><td class="pick">{box}</td>{first}{_cells(line[1:])}</tr>'
        hidden = "".join(
            f'<tr class="single" hidden><td></td><th scope="row">{_name(name.text, "")}</th>{_cells(cells)}</tr>'
            for name, *cells in inner
        )
        bodies.append(f"<tbody>{shown}{hidden}</tbody>")
    return _wrap_in_scroll_box(f"<table>{_head(heading)}{''.join(bodies)}</table>", "Results")


def _name(text: str, beside: str) -> str:
    """Format the name of a run, with its sweep or its date and time in small type below."""
    sweep, _, job = text.rpartition("/")
    small = sweep or (match[0].rstrip("_") if (match := STAMP.match(text)) else "")
    below = f"<small>{escape(small)}</small>" if small else ""
    return f"<span>{escape(job if sweep else STAMP.sub('', text))}</span>{beside}{below}"


def _head(cells: Sequence[Cell]) -> str:
    """Format the heading of a table of results, with buttons that sort."""

    def heading(cell: Cell) -> str:
        name = re.sub(r"(\.|_(?=yaw_|tag_|region_|size_))", r"\1<wbr>", escape(cell.text))
        below = f"<small>{escape(cell.below)}</small>" if cell.below else ""
        button = f'<button type="button" data-sort>{name}</button>'
        return f'<th scope="col" class="{"number" if cell.number else "word"}">{button}{below}</th>'

    pick = '<td class="pick"></td>'
    return f"<thead><tr>{pick}{''.join(map(heading, cells))}</tr></thead>"


def _cells(cells: Sequence[Cell]) -> str:
    """Format the cells of a row after its name."""

    def cell_html(cell: Cell) -> str:
        text = f"<b>{escape(cell.text)}</b>" if cell.bold else f"<span>{escape(cell.text)}</span>"
        below = f"<small>{escape(cell.below).replace('..', '–')}</small>" if cell.below else ""
        kind = "number" if cell.number else "long word" if len(cell.text) > LONG else "word"
        return f'<td class="{kind}">{text}{below}</td>'

    return "".join(map(cell_html, cells))


def _wrap_in_scroll_box(table: str, name: str) -> str:
    """Put a table into a box that scrolls with mouse and keyboard, so that the page itself does not scroll sideways."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{table}</div>'


def _plain_table(heading: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int], name: str) -> str:
    """Format a table of text; ``numbers`` are indices of columns with numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ("number" if index in numbers else "long word" for index in range(len(cells)))
        return "".join(f'<{tag} class="{kind}">{escape(text)}</{tag}>' for kind, text in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return _wrap_in_scroll_box(
        f"<table><thead><tr>{line('th', heading)}</tr></thead><tbody>{body}</tbody></table>", name
    )


def _published(table: Table) -> str:
    """Format the published results on the faces of a table."""
    if not table.published:
        return ""
    rows = [
        [entry.method, entry.settings or "-", entry.metric, f"{100 * entry.value:.2f}", entry.source]
        for entry in table.published
    ]
    content = _plain_table(["method", "settings", "metric", "%", "source"], rows, [3], "Published results")
    return f"<details><summary>Published results on these faces: {len(rows)}</summary>{content}</details>"


def _unmeasured(runs: Sequence[Run], *, has_curves: bool, number: int) -> str:
    """Format the section of runs without metrics."""
    heading, *rows = [[cell.text for cell in row] for row in grid_without_numbers(runs)]
    state = heading.index("state")
    body = "".join(
        "<tr>{}</tr>".format(
            "".join(
                f'<td class="word"><span class="state" data-state="{escape(text)}">{escape(text)}</span></td>'
                if index == state
                else f'<td class="{"long word" if len(text) > LONG else "word"}">{escape(text)}</td>'
                for index, text in enumerate(row)
            )
        )
        for row in rows
    )
    head = "".join(f'<th scope="col" class="word">{escape(text)}</th>' for text in heading)
    table = _wrap_in_scroll_box(
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", "Runs without metrics"
    )
    data = f' data-section="{number - 1}"' if has_curves else ""
    return f"""<section id="no-numbers" aria-labelledby="no-numbers-title"{data}>
<h2 id="no-numbers-title">Runs without metrics <span class="quiet">{len(rows)}</span></h2>
{table}
{'<div class="figures"></div>' if has_curves else ""}
</section>"""


def _pictures(table: Table, most: int) -> str:
    """Format the pictures of the worst faces or photos, one run per row and at most ``most``."""
    figures: list[str] = []
    labels = dict(zip((row.name for row in table.rows), labels_of(table), strict=True))
    for row in table.rows:
        with_picture = [run for run in row.runs if run.ranked and RunFolder(run.folder).worst_picture.exists()]
        if with_picture and len(figures) < most:
            run = next(run for run in table.runs if run in with_picture)
            label, name = labels[row.name], one_line(run.name)
            caption = name if name.endswith(label) else f"{label}: {name}"
            figures.append(_picture(RunFolder(run.folder).worst_picture, caption))
    if not figures:
        return ""
    about = {
        "faces": "The faces of each run with the largest nme_box; true points green, predicted points red.",
        "photos": "The photos of each run with the most missed faces and false detections; annotated faces green, "
        "detections red.",
    }
    return f"""<h3>Worst {table.noun}</h3>
<p class="quiet note">{about[table.noun]}</p>
<div class="pictures">{"".join(figures)}</div>"""


def _picture(file: Path, caption: str) -> str:
    """Format a picture as embedded JPEG with its caption, or the reason why it cannot be read."""
    try:
        image = read_picture(file)
    except ValueError as error:
        return f"<figure><figcaption>{escape(f'{caption}: {one_line(str(error))}')}</figcaption></figure>"
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=PICTURE_QUALITY, optimize=True)
    width, height = image.size
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    image_tag = f'<img src="{source}" width="{width}" height="{height}" alt="{escape(caption)}">'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{image_tag}</figure>"


def read_picture(file: Path) -> Image.Image:
    """Read a picture and reduce it to the size that the page shows.

    Only PNG, the format of a test's pictures, is decoded: for some other formats Pillow starts external programs.

    Raises:
        ValueError: the file cannot be read, is not a PNG image, or is broken or too large; the message contains its
            name.
    """
    try:
        content = io.BytesIO(read_bytes(file, MAX_PICTURE_BYTES))
        quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        with quiet, Image.open(content, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PICTURE_PIXELS:
                raise ValueError(f"has {image.width} x {image.height} pixels, which is too many")
            image.thumbnail((PICTURE_WIDTH, PICTURE_HEIGHT))
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{file.name} is not a PNG image") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file.name}: {error}") from error
