"""Numbers that papers report, and on which faces."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("published.csv")


class Published(NamedTuple):
    """A number that a paper, or the repository of its authors, reports on an official test set."""

    method: str  # the class of its module here, such as PIPNet
    backbone: str  # backbone.name in the configuration; empty where the method has but one
    metric: str  # by the name it is logged under
    value: float  # fraction
    source: str


def official(protocol: Mapping[str, Any], file: Path = FILE) -> list[Published]:
    """Find what is published on the faces of a protocol: same dataset, split, faces and landmarks, no flip test.

    How each paper cut its faces out stands in the source; it is not looked at here. The dataset is known by its name
    alone: the same faces under another ``data.name`` are left out, since another set may have as many.

    Args:
        protocol: of a run.
        file: with columns dataset, split, faces, layout and the fields of :class:`Published`.
    """
    if protocol.get("flip_test"):
        return []
    asked = tuple(str(protocol.get(key)) for key in ("dataset", "split", "faces", "layout"))
    with file.open(newline="", encoding="utf-8") as stream:
        return [
            Published(row["method"], row["backbone"], row["metric"], float(row["value"]), row["source"])
            for row in csv.DictReader(stream)
            if (row["dataset"], row["split"], row["faces"], row["layout"]) == asked
        ]


def official_sets(file: Path = FILE) -> dict[str, str]:
    """Map the ``data.name`` of each test set of which numbers are published to what it must be, to be read."""
    with file.open(newline="", encoding="utf-8") as stream:
        return {
            row["dataset"]: f"{row['split']}, {int(row['faces']):,} faces, layout {row['layout']}"
            for row in csv.DictReader(stream)
        }
