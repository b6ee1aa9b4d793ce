"""Put runs side by side: ``python compare.py logs/train/multiruns/2026-11-20_07-17-00 'logs/train/runs/*wflw98*'``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from facelab import comparison

if TYPE_CHECKING:
    from rich.table import Table


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
        console.width = 10_000
    if line := comparison.disagreement(tables):
        console.print(line + "\n")
    for number, table in enumerate(tables, start=1):
        title = f"Table {number}: " if len(tables) > 1 else ""
        console.print(title + comparison.describe(table.protocol), style="bold")
        console.print(rich_table(comparison.grid(table)))
        console.print("\n".join(comparison.remarks(table)) + "\n", style="dim")
    if rows := comparison.grid_without_numbers(runs):
        console.print("Runs without numbers", style="bold")
        console.print(rich_table(rows))


def rich_table(rows: list[list[comparison.Cell]]) -> "Table":
    """The terminal's form of a table; the second line of a cell is its interval."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def text(cell: comparison.Cell) -> Text:
        # A metric's long name breaks before its subset.
        name = cell.text.replace("_yaw_", "_\nyaw_") if cell.number else cell.text
        return Text.assemble((name, "bold" if cell.bold else ""), (f"\n{cell.below}" if cell.below else "", "dim"))

    heading, *body = rows
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for cell in heading:
        table.add_column(text(cell), justify="right" if cell.number else "left", overflow="fold")
    for row in body:
        table.add_row(*map(text, row))
    return table


if __name__ == "__main__":
    main()
