"""Put runs side by side: ``python compare.py logs/train/multiruns/2026-11-20_07-17-00 'logs/train/runs/*wflw98*'``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from facelab import comparison

if TYPE_CHECKING:
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

WIDEST = 10_000
"""Characters; wider than any table."""
NARROWEST = 14
"""Characters to which a column of words is folded."""


def parse() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(
        description="Put runs side by side, one table for each protocol: only numbers of the same faces, boxes and "
        "rules can be compared. Sorted by nme_box."
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
        "--metrics",
        metavar="NAME",
        nargs="+",
        help=f"columns, by their names in metrics.json (default: {' '.join(comparison.MAIN)})",
    )
    return parser.parse_args()


def main() -> None:
    """Read, compare, print and write."""
    typed = parse()
    try:
        runs = comparison.read_runs(typed.runs)
        tables = comparison.compare(runs, typed.metrics)
        if typed.csv:
            comparison.write_csv(typed.csv, runs, tables)
        if typed.markdown:
            comparison.write_markdown(typed.markdown, runs, tables)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    show(runs, tables)


def show(runs: list[comparison.Run], tables: list[comparison.Table]) -> None:
    """Print the tables to the terminal; into a pipe as wide as they are."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDEST
    if line := comparison.disagreement(tables):
        console.print(line + "\n")
    for heading, table in zip(comparison.headings(tables), tables, strict=True):
        console.print(heading, style="bold")
        show_grid(console, comparison.grid(table))
        console.print("\n".join(comparison.remarks(table)) + "\n", style="dim")
    if rows := comparison.grid_without_numbers(runs):
        console.print("Runs without numbers", style="bold")
        show_grid(console, rows)


def show_grid(console: "Console", rows: list[list[comparison.Cell]]) -> None:
    """Print a table. Words are folded to make it fit, numbers never: the lines of a table may pass the window's end."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def text(cell: comparison.Cell) -> Text:
        # A metric's long name breaks before its subset.
        name = cell.text.replace("_yaw_", "_\nyaw_") if cell.number else cell.text
        return Text.assemble((name, "bold" if cell.bold else ""), (f"\n{cell.below}" if cell.below else "", "dim"))

    texts = [[text(cell) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for cell, column in zip(rows[0], zip(*texts, strict=True), strict=True):
        width = max(measure(console, each).maximum for each in column)
        least = width if cell.number else min(width, NARROWEST)
        table.add_column(column[0], justify="right" if cell.number else "left", min_width=least, overflow="fold")
    for row in texts[1:]:
        table.add_row(*row)
    size = measure(console, table)
    console.print(table, width=min(size.maximum, max(size.minimum, console.width)), crop=False)


def measure(console: "Console", what: "Table | Text") -> "Measurement":
    """Fewest and most characters that something is wide, in a window without an end."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(width=WIDEST), what)


if __name__ == "__main__":
    main()
