"""Put runs side by side: ``python compare.py logs/train/multiruns/2026-11-20_07-17-00 'logs/train/runs/*wflw98*'``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from facelab.comparison.grid import Cell, disagreement, grid, grid_without_numbers, headings, one_line, remarks
from facelab.comparison.group import MAIN, Table, compare, protocol_differences
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
"""Characters; wider than any table."""
NARROWEST = 14
"""Characters to which a column of words is folded."""


def parse() -> argparse.Namespace:
    """Read what was typed."""
    parser = argparse.ArgumentParser(
        description="Put runs side by side, one table for each protocol: only numbers of the same faces, boxes and "
        "rules can be compared. Sorted by nme_box.",
        epilog="The column paper appears beside the whole official test sets, which are known by their data.name: "
        + "; ".join(f"{name} ({what})" for name, what in official_sets().items()),
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="folder of a run, folder of a sweep, or a pattern such as 'logs/train/runs/*'",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write one row per run, as fractions in full")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown, in percent")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write one page, which needs nothing beside it: tables, curves, error distributions, error against "
        "cost, face-by-face comparison of any two runs, worst faces",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=6,
        metavar="N",
        help="runs of each table whose worst faces the page shows, the best first; they are pictures of the dataset: "
        "0 keeps them out (default: 6)",
    )
    parser.add_argument(
        "--pair",
        nargs=2,
        metavar=("A", "B"),
        help="compare two of the runs on the faces both have; a part of a name is enough",
    )
    parser.add_argument(
        "--each", action="store_true", help="list the single runs below the mean of those that differ in the seed"
    )
    parser.add_argument(
        "--metrics",
        metavar="NAME",
        nargs="+",
        help=f"columns, by their names in {RunFolder(Path()).metrics.name} (default: {' '.join(MAIN)})",
    )
    return parser.parse_args()


def main() -> None:
    """Read, compare, print and write."""
    typed = parse()
    try:
        runs = read_runs(typed.runs)
        tables = compare(runs, typed.metrics)
        pair = compare_two(runs, typed.pair) if typed.pair else None
        if typed.csv:
            write_csv(typed.csv, runs, tables)
        if typed.markdown:
            write_markdown(typed.markdown, runs, tables, each=typed.each)
        if typed.html:
            from facelab.comparison.page import write_page

            write_page(typed.html, runs, tables, typed.pictures)
    except (FacelabError, OSError) as error:
        raise SystemExit(str(error)) from error
    console = open_console()
    show(console, runs, tables, each=typed.each)
    if pair:
        show_pair(console, *pair)
    if typed.html:
        console.print(f"page: {typed.html}", style="dim")
    elif tables:
        console.print("--html FILE writes a page with curves, distributions and any two runs face by face", style="dim")


def compare_two(runs: Sequence[Run], names: Sequence[str]) -> "tuple[Run, Run, Pair]":
    """Compare the two runs that are meant."""
    from facelab.comparison.pairs import choose, compare_pair

    a, b = (choose(runs, name) for name in names)
    return a, b, compare_pair(a, b)


def open_console() -> "Console":
    """Open the terminal; a pipe is as wide as what is written to it."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDEST
    return console


def show(console: "Console", runs: list[Run], tables: list[Table], *, each: bool) -> None:
    """Print the tables."""
    if line := disagreement(tables):
        console.print(line + "\n")
    for heading, table in zip(headings(tables), tables, strict=True):
        console.print(heading, style="bold")
        show_grid(console, grid(table, each=each))
        console.print("\n".join(remarks(table)) + "\n", style="dim")
    if rows := grid_without_numbers(runs):
        console.print("Runs without numbers", style="bold")
        show_grid(console, rows)


def show_pair(console: "Console", a: Run, b: Run, pair: "Pair") -> None:
    """Print how two runs differ on their common faces."""
    from facelab.comparison.pairs import RESAMPLES

    console.print(f"A {one_line(a.name)}\nB {one_line(b.name)}", style="bold")
    rows = [[Cell("A - B"), *(Cell(text, number=True) for text in ("%", "95 % interval", "p", "faces"))]]
    for metric, found in pair.differences.items():
        numbers = (f"{100 * found.value:+.2f}", f"{100 * found.low:+.2f}..{100 * found.high:+.2f}")
        rows.append(
            [
                Cell(metric),
                *(Cell(text, number=True) for text in (*numbers, f"{found.probability:.3f}", f"{found.faces}")),
            ]
        )
    show_grid(console, rows)
    lines = [f"Paired bootstrap, {RESAMPLES} resamples of the {pair.common} faces both have"]
    lines[0] += " (of {} and {}).".format(*pair.faces)
    lines.append("p: twice the share of resamples in which the difference has the other sign or is zero.")
    if parts := protocol_differences([a.protocol, b.protocol]):
        lines.append(f"Their protocols differ in {', '.join(map(one_line, parts))}.")
    console.print("\n".join(lines) + "\n", style="dim")


def show_grid(console: "Console", rows: list[list[Cell]]) -> None:
    """Print a table. Words are folded to make it fit, numbers never: the lines of a table may pass the window's end."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    def text(cell: Cell) -> Text:
        # A metric's long name breaks before its subset, a cost with pose behind that.
        name = cell.text.replace("_yaw_", "_\nyaw_").replace("pose: ", "pose:\n") if cell.number else cell.text
        return Text.assemble((name, "bold" if cell.bold else ""), (f"\n{cell.below}" if cell.below else "", "dim"))

    texts = [[text(cell) for cell in row] for row in rows]
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for cell, column in zip(rows[0], zip(*texts, strict=True), strict=True):
        width = max(measure(console, each).maximum for each in column)
        least = width if cell.number else min(width, NARROWEST)
        table.add_column(column[0], justify="right" if cell.number else "left", min_width=least, overflow="fold")
    for row in texts[1:]:
        table.add_row(*row)
    size = measure(console, table)
    console.print(table, width=min(size.maximum, max(size.minimum, console.width)), crop=False)


def measure(console: "Console", what: "RichTable | Text") -> "Measurement":
    """Count the fewest and most characters that something is wide, in a window without an end."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(width=WIDEST), what)


if __name__ == "__main__":
    main()
