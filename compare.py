"""Comparison of runs: ``python compare.py logs/train/multiruns/2026-11-20_07-17-00 'logs/train/runs/*wflw98*'``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from facelab.comparison.grid import Cell, build_cells, disagreement, grid_without_numbers, headings, one_line, remarks
from facelab.comparison.group import MAIN, MAIN_OF_DETECTORS, SORT_BY, Table, compare, protocol_differences
from facelab.comparison.published import official_sets
from facelab.comparison.read import Run, read_runs
from facelab.comparison.write import write_csv, write_markdown
from facelab.errors import FacelabError
from facelab.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table as RichTable
    from rich.text import Text

    from facelab.comparison.pairs import Pair

WIDEST = 10_000
"""Width in characters of a console without a terminal; no table is wider."""
NARROWEST = 14
"""Minimum width in characters of a folded text column."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Compare runs, in one table per protocol: only results on the same faces and boxes by the same "
        f"rules are comparable. The tables are sorted by {SORT_BY[0]}, those of detectors by {SORT_BY[1]}.",
        epilog="The column paper appears for complete official test sets, which are identified by their data.name: "
        + "; ".join(f"{name} ({description})" for name, description in official_sets().items()),
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="folder of a run, folder of a sweep, or a pattern such as 'logs/train/runs/*'",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write one row per run, with unrounded numbers")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown, in percent")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write a self-contained page: tables, curves, error distributions, precision and recall of "
        "detectors, error against cost, face-by-face comparison with the best runs and those of --pair, worst faces",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=6,
        metavar="N",
        help="number of runs per table whose worst faces the page shows, the best first; 0 keeps all pictures of the "
        "dataset out of the page (default: 6)",
    )
    parser.add_argument(
        "--pair",
        nargs=2,
        metavar=("A", "B"),
        help="compare two of the runs on their common faces; a part of a name is enough",
    )
    parser.add_argument("--each", action="store_true", help="list the single runs below each mean over seeds")
    parser.add_argument(
        "--metrics",
        metavar="NAME",
        nargs="+",
        help=f"columns, by their name in {RunFolder(Path()).metrics.name} (default: {' '.join(MAIN)}; of detectors "
        f"{' '.join(MAIN_OF_DETECTORS)})",
    )
    options = parser.parse_args()
    for name in ("csv", "markdown", "html"):
        if (path := getattr(options, name)) and path.is_dir():
            raise SystemExit(f"--{name} {path}: Is a directory; name a file")
    if options.pictures < 0:
        raise SystemExit(f"--pictures {options.pictures}: expected 0 or more")
    return options


def main() -> None:
    """Read the runs, compare them, print the tables and write the files."""
    options = parse()
    try:
        runs = read_runs(options.runs)
        tables = compare(runs, options.metrics)
        pair = compare_two(runs, options.pair, options.metrics or ()) if options.pair else None
        if options.csv:
            write_csv(options.csv, runs, tables)
        if options.markdown:
            write_markdown(options.markdown, runs, tables, each=options.each)
        if options.html:
            from facelab.comparison.page import write_page

            write_page(options.html, runs, tables, options.pictures, pair[:2] if pair else ())
    except (FacelabError, OSError) as error:
        raise SystemExit(str(error)) from error
    console = open_console()
    show(console, runs, tables, each=options.each)
    if pair:
        show_pair(console, *pair)
    if options.html:
        console.print(f"page: {options.html}", style="dim")
    elif tables:
        console.print("--html FILE writes a page with curves, distributions and face-by-face comparisons", style="dim")


def compare_two(runs: Sequence[Run], names: Sequence[str], columns: Sequence[str]) -> "tuple[Run, Run, Pair]":
    """Compare the two runs with these names."""
    from facelab.comparison.pairs import choose, compare_pair, paired_metrics

    a, b = (choose(runs, name) for name in names)
    return a, b, compare_pair(a, b, paired_metrics(columns))


def open_console() -> "Console":
    """Create a console; without a terminal, as in a pipe, its width does not limit the tables."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDEST
    return console


def show(console: "Console", runs: list[Run], tables: list[Table], *, each: bool) -> None:
    """Print the tables and the list of runs without metrics."""
    if line := disagreement(tables):
        console.print(line + "\n")
    for heading, table in zip(headings(tables), tables, strict=True):
        console.print(heading, style="bold")
        show_grid(console, build_cells(table, with_single_runs=each))
        console.print("\n".join(remarks(table)) + "\n", style="dim")
    if rows := grid_without_numbers(runs):
        console.print("Runs without metrics", style="bold")
        show_grid(console, rows)


def show_pair(console: "Console", a: Run, b: Run, pair: "Pair") -> None:
    """Print the differences of two runs on their common faces."""
    from facelab.comparison.pairs import PAIR_REMARK, pair_cells, pair_line

    console.print(f"A {one_line(a.name)}\nB {one_line(b.name)}", style="bold")
    show_grid(console, pair_cells(pair, b.metrics))
    lines = [pair_line(pair), PAIR_REMARK]
    if parts := protocol_differences([a.protocol, b.protocol]):
        lines.append(f"Their protocols differ in {', '.join(map(one_line, parts))}.")
    console.print("\n".join(lines) + "\n", style="dim")


def show_grid(console: "Console", rows: list[list[Cell]]) -> None:
    """Print a table. Text columns are folded to fit the window, numbers never, so a table may be wider than it."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    def text(cell: Cell) -> Text:
        """Format a cell for the terminal."""
        # Break a metric's name before its yaw range, and a cost's name after "pose:".
        name = cell.text.replace("_yaw_", "_\nyaw_").replace("pose: ", "pose:\n") if cell.number else cell.text
        return Text.assemble((name, "bold" if cell.bold else ""), (f"\n{cell.below}" if cell.below else "", "dim"))

    texts = [[text(cell) for cell in row] for row in rows]
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for cell, column in zip(rows[0], zip(*texts, strict=True), strict=True):
        width = max(measure(console, entry).maximum for entry in column)
        least = width if cell.number else min(width, NARROWEST)
        table.add_column(column[0], justify="right" if cell.number else "left", min_width=least, overflow="fold")
    for row in texts[1:]:
        table.add_row(*row)
    size = measure(console, table)
    console.print(table, width=min(size.maximum, max(size.minimum, console.width)), crop=False)


def measure(console: "Console", item: "RichTable | Text") -> "Measurement":
    """Return the minimum and maximum width of an item in characters, in a window of unlimited width."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(width=WIDEST), item)


if __name__ == "__main__":
    main()
