"""Tests of the records of metrics and of their conversion from files of earlier versions."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from facelab.files import write_json
from facelab.metrics.record import SCALES, Metric, Unit, as_json, read_metrics

NME = Metric(0.05, 0.04, 0.06, 90, 10, "fraction", "lower")
PART = Metric(math.nan, math.nan, math.nan, 0, 3, "fraction", "lower", "nme_box", "yaw", "0_30")


def test_read_metrics_returns_what_as_json_wrote(tmp_path: Path) -> None:
    """Would catch infinity that a file confuses with a metric without faces, and a field that is lost."""
    metrics = {"nme": NME, "part": PART, "none": NME._replace(value=math.inf, high=math.inf, better="none")}
    write_json(tmp_path / "a.json", {"metrics": {name: as_json(metric) for name, metric in metrics.items()}})
    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert (content["metrics"]["none"]["value"], content["metrics"]["part"]["value"]) == ("inf", None)
    assert "part" not in content["metrics"]["nme"]
    read = read_metrics(content)
    assert {name: repr(metric) for name, metric in read.items()} == {name: repr(each) for name, each in metrics.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": "low"}, "metrics.nme.value is 'low', expected a number"),
        ({"value": 10**400}, "metrics.nme.value is an integer of 401 digits"),
        ({"faces": 1.5}, "metrics.nme.faces is 1.5, expected a whole number"),
        ({"unit": "percent"}, "metrics.nme.unit is 'percent', expected fraction or degrees or pixels or count"),
        ({"better": ["lower"]}, r"metrics.nme.better is \['lower'\], expected text"),
    ],
    ids=str,
)
def test_read_metrics_names_a_broken_field(changes: dict[str, Any], message: str) -> None:
    """Would catch a number in an unknown unit, or a text that is compared as a number."""
    with pytest.raises(ValueError, match=message):
        read_metrics({"metrics": {"nme": as_json(NME) | changes}})
    for key in changes:
        with pytest.raises(ValueError, match=f"metrics.nme has no `{key}`"):
            read_metrics({"metrics": {"nme": {name: value for name, value in as_json(NME).items() if name != key}}})


@pytest.mark.parametrize(
    ("unit", "text"), [("fraction", "1250.00"), ("degrees", "12.50"), ("pixels", "12.50"), ("count", "12")]
)
def test_metric_text_shows_each_unit(unit: Unit, text: str) -> None:
    """Would catch pixels in percent, and half a face."""
    assert NME._replace(unit=unit).text(12.5) == text and unit in SCALES
    assert NME.text(math.nan) == "-" and NME.text(math.inf) == "inf"


# Earlier versions


def test_read_metrics_converts_a_recorded_file() -> None:
    """Would catch an old run that the comparison cannot read, or shows in another unit, direction or part."""
    metrics = read_metrics(json.loads((ROOT / "tests/recorded/uninterrupted/metrics.json").read_text()))
    box, part, angle = metrics["nme_box"], metrics["nme_box_yaw_0_30"], metrics["mae_yaw"]
    assert (box.unit, box.better, box.faces, box.left_out, box.breakdown) == ("fraction", "lower", 8, 0, "")
    assert box.low < box.value < box.high
    assert (part.whole, part.breakdown, part.part, part.faces) == ("nme_box", "yaw", "0_30", 3)
    assert (angle.unit, angle.better) == ("degrees", "lower")
    assert (metrics["auc08_ioc"].better, metrics["fr08_ioc"].better) == ("higher", "lower")
    assert (metrics["fr08_ioc"].faces, metrics["fr08_ioc"].left_out) == (7, 1)
    assert metrics["faces"][3:7] == (8, 0, "count", "none") and math.isnan(metrics["faces"].low)
    assert metrics["nme_box_yaw_mean"].breakdown == ""
    assert {metric.breakdown for metric in metrics.values()} == {"", "yaw", "tag", "region", "size"}
    assert metrics["nme_ioc_region_left_eye"].part == "left_eye"


@pytest.mark.parametrize(
    ("name", "counts", "infinite"),
    [
        ("nme_box", {"nme_ioc": 0, "nme_box": 2}, True),
        ("nme_box", {"nme_ioc": 2, "nme_box": 0}, False),
        ("fr08_ioc", {"nme_ioc": 2}, True),
        ("nme_box_yaw_mean", {"nme_box_yaw_mean": 3, "nme_box_yaw_0_30": 3, "nme_box_yaw_30_60": 0}, False),
    ],
)
def test_read_metrics_reads_an_old_null_as_infinite_if_faces_were_counted(
    name: str, counts: dict[str, int], infinite: bool
) -> None:
    """Would catch a network that predicts nothing and looks like a subset without faces."""
    (metric,) = read_metrics({"metrics": {name: None}, "counts": counts, "intervals": {name: [0.1, None]}}).values()
    assert (math.isinf(metric.value), math.isnan(metric.value)) == (infinite, not infinite)
    assert math.isinf(metric.high) is infinite and metric.low == 0.1
