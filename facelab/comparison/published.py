"""Published results and the faces on which they were measured."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("published.csv")
"""Table of the published results."""


class Published(NamedTuple):
    """A result on an official test set from a paper or the repository of its authors."""

    method: str  # class of the module in this project, such as PIPNet
    settings: str  # KEY=VALUE of the configuration, such as backbone.name=resnet18, without spaces, separated by spaces
    metric: str  # name under which this project logs the metric, measured in the frame of the source
    value: float  # fraction
    source: str


def official(protocol: Mapping[str, Any], file: Path = FILE) -> list[Published]:
    """Find the published results for a protocol: equal dataset, split, faces and layout, no flip test, no box jitter.

    A source that measures in pixels of the network's crop has a metric whose name ends in ``_crop``; all others measure
    in pixels of the photo. Crops, boxes and training sets of the sources are not compared here. The dataset is
    identified by its name only. The same faces under another ``data.name`` have no published results, because another
    set may have the same number of faces.

    Args:
        protocol: protocol of a run.
        file: CSV file with the columns dataset, split, faces, layout and the fields of :class:`Published`.
    """
    if protocol.get("flip_test") or protocol.get("box_jitter"):
        return []
    wanted = tuple(str(protocol.get(key)) for key in ("dataset", "split", "faces", "layout"))
    with file.open(newline="", encoding="utf-8") as stream:
        return [
            Published(row["method"], row["settings"], row["metric"], float(row["value"]), row["source"])
            for row in csv.DictReader(stream)
            if (row["dataset"], row["split"], row["faces"], row["layout"]) == wanted
        ]


def official_sets(file: Path = FILE) -> dict[str, str]:
    """Map the ``data.name`` of each test set with published results to a description of the set."""
    with file.open(newline="", encoding="utf-8") as stream:
        return {
            row["dataset"]: f"{row['split']}, {int(row['faces']):,} faces, layout {row['layout']}"
            for row in csv.DictReader(stream)
        }
