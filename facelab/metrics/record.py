"""Record of a metric: its value with all that a reader of results must know about it. Without torch and numpy."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, get_args

Unit = Literal["fraction", "degrees", "pixels", "count"]
"""Unit of the numbers in files and logs; a count is a whole number."""
Better = Literal["lower", "higher", "none"]
"""Direction of better values."""


class Scale(NamedTuple):
    """Way in which tables and figures show the numbers of a unit."""

    sign: str  # behind a number or as the label of an axis; empty for a count
    factor: int  # of a number before it is shown
    decimals: int


SCALES: dict[Unit, Scale] = {
    "fraction": Scale("%", 100, 2),
    "degrees": Scale("°", 1, 2),
    "pixels": Scale("px", 1, 2),
    "count": Scale("", 1, 0),
}
"""Scale by unit; files and logs contain the unscaled numbers."""
EVALUATOR_VERSION = 1
"""Version in the protocol; increase it when a change alters a metric of the same predictions.

Old and new metrics are then not compared.
"""
RESAMPLES = 1000
"""Resamples of the bootstrap of each 95 % interval."""
INFINITE = "inf"
"""Infinity in a JSON file, where null is NaN: an annotated point has no finite prediction, or there is no face."""


class Metric(NamedTuple):
    """Value of a metric in a test, as ``metrics.json`` contains it under its name."""

    value: float  # NaN if no face has an error, infinite if an annotated point of one has no finite prediction
    low: float  # lower end of the 95 % interval over faces; NaN if it is unknown
    high: float  # upper end
    faces: int  # number of faces in the value
    left_out: int  # number of faces that the metric is about, but that have no error
    unit: Unit
    better: Better  # whether lower or higher values are better; none if neither is
    whole: str = ""  # the metric of all faces and points, if this one is a part of it: nme_box of nme_box_yaw_0_30
    breakdown: str = ""  # the property by which the parts are divided: yaw
    part: str = ""  # the part: 0_30

    def text(self, number: float, *, plus: bool = False) -> str:
        """Format a number in the unit of this metric without the unit; NaN is a dash.

        Args:
            number: number of a file or log.
            plus: whether a number above zero begins with ``+``, as for differences.

        >>> metric = Metric(0.0457, 0.044, 0.047, 2500, 0, "fraction", "lower")
        >>> metric.text(0.0457), metric.text(0.0003, plus=True)
        ('4.57', '+0.03')
        """
        scale = SCALES[self.unit]
        return "-" if math.isnan(number) else f"{scale.factor * number:{'+' * plus}.{scale.decimals}f}"


class Definition(Protocol):
    """Metric of a table that can compute its record."""

    def record(self, resamples: int, seed: int) -> Metric:
        """Compute the record with the 95 % bootstrap interval of a number of resamples."""
        ...


def as_results(protocol: Mapping[str, Any], definitions: Mapping[str, Definition]) -> dict[str, Any]:
    """Return the protocol of a test and the records of its metrics, as ``metrics.json`` contains them."""
    return {
        "protocol": {**protocol, "evaluator": EVALUATOR_VERSION},
        "metrics": {name: as_json(each.record(RESAMPLES, seed=0)) for name, each in definitions.items()},
    }


def as_json(metric: Metric) -> dict[str, Any]:
    """Convert a record to an entry of ``metrics.json``; a field that is an empty text is left out."""
    fields = {key: INFINITE if value == math.inf else value for key, value in metric._asdict().items()}
    return {key: value for key, value in fields.items() if value != ""}


def read_metrics(content: Mapping[str, Any]) -> dict[str, Metric]:
    """Read the records of a ``metrics.json``, also of one that an earlier version wrote.

    Raises:
        ValueError: an entry is missing or has a wrong type; the message contains its name.
    """
    metrics = content.get("metrics")
    if not isinstance(metrics, Mapping):
        raise ValueError("has no `metrics`")
    if "counts" in content:
        return _read_plain_numbers(content)
    return {name: _read_metric(name, fields) for name, fields in metrics.items()}


def _read_metric(name: str, fields: Any) -> Metric:
    """Check and convert an entry of ``metrics.json``."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"metrics.{name} is {_short(fields)}, expected a record")
    if missing := {*Metric._fields} - {*Metric._field_defaults} - {*fields}:
        raise ValueError(f"metrics.{name} has no `{min(missing)}`")
    known = {key: value for key, value in fields.items() if key in Metric._fields}
    for key, value in known.items():
        place = f"metrics.{name}.{key}"
        if key in ("value", "low", "high"):
            known[key] = read_number(place, value)
        elif key in ("faces", "left_out"):
            known[key] = _read_count(place, value)
        elif not isinstance(value, str):
            raise ValueError(f"{place} is {_short(value)}, expected text")
    for key, words in (("unit", get_args(Unit)), ("better", get_args(Better))):
        if known[key] not in words:
            raise ValueError(f"metrics.{name}.{key} is {_short(known[key])}, expected {' or '.join(words)}")
    return Metric(**known)


def read_number(name: str, value: Any) -> float:
    """Convert a number of a JSON file: null is NaN, :data:`INFINITE` infinity.

    Raises:
        ValueError: it is something else, or an integer that is too large for a float.
    """
    if value is None:
        return math.nan
    if value == INFINITE:
        return math.inf
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name} is {_short(value)}, expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} is an integer of {len(str(value))} digits, too large for a float") from error


def _read_count(name: str, value: Any) -> int:
    """Check a number of faces."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {_short(value)}, expected a whole number, 0 or more")
    return value


def _short(value: Any) -> str:
    """Return a value for a message."""
    return repr(value)[:80]


# Earlier versions wrote plain numbers. Only the code below concludes unit, direction and part from their names.

_UNITS: dict[str, Unit] = {"mae_": "degrees", "faces": "count"}
_BETTER: dict[str, Better] = {"nme_": "lower", "fr": "lower", "mae_": "lower", "auc": "higher"}
"""The unit, if it is not a fraction, and the direction by the beginning of a name."""
_PARTS = {
    **{f"nme_box_{kind}": ("nme_box", kind) for kind in ("yaw", "size", "stage")},
    **{f"nme_ioc_{kind}": ("nme_ioc", kind) for kind in ("tag", "region")},
}
"""The whole and the breakdown by the beginning of the names of its parts."""
_YAW, _YAW_MEAN = "nme_box_yaw_", "nme_box_yaw_mean"


def _read_plain_numbers(content: Mapping[str, Any]) -> dict[str, Metric]:
    """Convert a ``metrics.json`` with separate mappings of metrics, counts, left_out and intervals to records."""
    parts: dict[str, Any] = {part: content.get(part) for part in ("metrics", "counts", "intervals")}
    parts["left_out"] = content.get("left_out", {})
    for part, mapping in parts.items():
        if not isinstance(mapping, Mapping):
            raise ValueError(f"has no `{part}`")
    metrics, counts, intervals, left_out = (dict[str, Any](mapping) for mapping in parts.values())
    for part, numbers in (("counts", counts), ("left_out", left_out)):
        for name, value in numbers.items():
            _read_count(f"{part}.{name}", value)

    def count(numbers: dict[str, int], name: str) -> int:
        """Return a number of faces; failure rates and AUC had that of ``nme_ioc``."""
        return numbers.get(name, numbers.get("nme_ioc", 0))

    def number(name: str, place: str, value: Any) -> float:
        """Convert a number; null was infinity if faces contributed, and NaN if there were none."""
        faces = [count(counts, name)]
        if name == _YAW_MEAN:  # undefined as soon as one bucket is empty
            faces += [counts[bucket] for bucket in counts if bucket.startswith(_YAW)]
        return math.inf if value is None and all(faces) else read_number(place, value)

    records = {}
    for name, value in metrics.items():
        ends = intervals.get(name, [math.nan, math.nan])
        if not isinstance(ends, list) or len(ends) != 2:
            raise ValueError(f"intervals.{name} is {_short(ends)}, expected two numbers")
        low, high = (number(name, f"intervals.{name}", end) for end in ends)
        prefix = _prefix(name, _PARTS) if name != _YAW_MEAN else ""
        whole, breakdown = _PARTS.get(prefix, ("", ""))
        unit = _UNITS.get(_prefix(name, _UNITS), "fraction")
        records[name] = Metric(
            number(name, f"metrics.{name}", value),
            low,
            high,
            faces=count(counts, name) + (count(left_out, name) if unit == "count" else 0),  # a count is about all faces
            left_out=0 if unit == "count" else count(left_out, name),
            unit=unit,
            better=_BETTER.get(_prefix(name, _BETTER), "none"),
            whole=whole,
            breakdown=breakdown,
            part=name.removeprefix(prefix).removeprefix("_") if prefix else "",
        )
    return records


def _prefix(name: str, table: Mapping[str, Any]) -> str:
    """Return the key of a table with which a name begins; empty if there is none."""
    return next((key for key in table if name.startswith(key)), "")
