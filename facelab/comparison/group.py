"""Tables of comparable runs, and the test whether a run is better than the others."""

import difflib
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from facelab.comparison.published import Published, official
from facelab.comparison.read import STAMP, Run, class_name, setting, value_text
from facelab.errors import RunError
from facelab.metrics.record import Metric

SORT_BY = ("nme_box", "ap50")
"""Metrics by which runs are sorted: landmark methods by the first, detectors by the second, the best first."""
MAIN = (
    *("nme_ioc", "nme_ioc_crop", "nme_box", "fr08_ioc", "auc08_ioc"),
    *("nme_box_yaw_0_30", "nme_box_yaw_30_60", "nme_box_yaw_60_90", "nme_box_yaw_mean", "mae_angle"),
)
"""Metrics of landmark methods that are shown by default."""
MAIN_OF_DETECTORS = (
    *("ap50", "ap", "recall", "recall_fppi_01", "recall_fppi_1"),
    *("wider_easy", "wider_medium", "wider_hard", "nme5_box"),
)
"""Metrics of detectors that are shown by default."""
MODEL = "model._target_"
"""Key of the method in the configuration."""
RECIPE = frozenset(
    {"model", "head", "coder", "loss", "crop", "datamodule", "augment", "optimizer", "scheduler", "monitor"}
)
"""Nodes whose values belong to a method; ``backbone``, ``data`` and ``trainer`` are chosen independently of it."""


class Row(NamedTuple):
    """A run, or several runs that differ only in their seeds."""

    name: str
    runs: list[Run]  # by seed
    metrics: dict[str, Metric]  # those that all runs have; value and ends of the interval are means over the runs
    deviations: dict[str, float]  # sample standard deviations over the runs; empty for one run

    @property
    def ranked(self) -> bool:
        """Return whether all runs have ended and have metrics."""
        return all(run.ranked for run in self.runs)

    def value(self, metric: str) -> float:
        """Return the value of a metric; NaN if the row does not have it."""
        return self.metrics[metric].value if metric in self.metrics else math.nan


class Table(NamedTuple):
    """Comparison table of the runs of one protocol; ``runs`` and ``rows`` are sorted, the best first."""

    protocol: dict[str, Any]
    runs: list[Run]
    rows: list[Row]
    published: list[Published]  # published results on the same faces
    settings: list[str]  # keys of the configuration in which the runs differ, except `recipe`
    recipe: list[str]  # keys in which the runs differ only by method, with one value per method
    metrics: list[str]  # columns, in order

    @property
    def noun(self) -> str:
        """Return what was measured and what the intervals resample: ``photos`` by a detector, else ``faces``."""
        return "photos" if "photos" in self.protocol else "faces"


def compare(runs: Sequence[Run], metrics: Sequence[str] | None) -> list[Table]:
    """Make one table per protocol, in the order of their first runs; runs without metrics are in no table.

    Args:
        runs: runs to compare.
        metrics: columns; None for those of :data:`MAIN` and :data:`MAIN_OF_DETECTORS` that the runs have, or for all if
            they have none of these.

    Raises:
        RunError: no run has a metric of that name.
    """
    measured = [run for run in runs if run.protocol]
    available = list(dict.fromkeys(name for run in measured for name in run.metrics))
    for name in metrics or ():
        if measured and name not in available:
            nearest = difflib.get_close_matches(name, available, n=3)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"the runs have {', '.join(available)}"
            raise RunError(f"no run has a metric {name}; {hint}")
    groups: list[list[Run]] = []
    for run in measured:
        for group in groups:
            if group[0].protocol == run.protocol:
                group.append(run)
                break
        else:
            groups.append([run])
    return [_table(group, metrics) for group in groups]


def _table(runs: list[Run], metrics: Sequence[str] | None) -> Table:
    """Build the table of runs with one protocol."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    keys = differing(runs)
    recipe = recipe_keys(runs, keys)
    main = [name for name in (*MAIN, *MAIN_OF_DETECTORS) if name in names]
    return Table(
        protocol=runs[0].protocol,
        runs=sorted(runs, key=lambda run: _rank(row_of([run]))),
        rows=sorted(rows_of(runs), key=_rank),
        published=official(runs[0].protocol),
        settings=[key for key in keys if key not in recipe],
        recipe=recipe,
        metrics=list(dict.fromkeys(metrics)) if metrics else main or names,
    )


def _rank(entry: Row) -> tuple[bool, bool, float, str]:
    """Return the sort key: ranked first, then by :data:`SORT_BY`, then by name."""
    metric = next((entry.metrics[name] for name in SORT_BY if name in entry.metrics), None)
    if metric is None or math.isnan(metric.value):
        return not entry.ranked, True, 0.0, entry.name
    return not entry.ranked, False, -metric.value if metric.better == "higher" else metric.value, entry.name


def natural_order(run: Run) -> list[tuple[bool, int, str]]:
    """Return a key that sorts runs by name with numbers by value: job 10 after job 2."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", run.name)]


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Group runs that differ only in ``seed`` into one row.

    A run that has no seed or is not ranked has a separate row. So does a run that repeats a seed of a row, because it
    is not an independent sample of the noise.
    """
    groups: list[tuple[str, list[Run]]] = []
    for run in sorted(runs, key=lambda run: str(run.config.get("seed", "")).zfill(20)):
        recipe = _recipe(run.config)
        for other, group in groups:
            has_new_seed = run.config.get("seed") not in [None, *(each.config.get("seed") for each in group)]
            is_equal = other == recipe and _same_seeds(group[0].config, run.config)
            if is_equal and has_new_seed and run.ranked and group[0].ranked:
                group.append(run)
                break
        else:
            groups.append((recipe, [run]))
    return [row_of(group) for _, group in groups]


def _recipe(config: Mapping[str, Any]) -> str:
    """Convert a configuration to text, without seeds and without the folder of an evaluated run."""
    rest = {key: value for key, value in config.items() if _last(key) != "seed" and value is not None}
    if checkpoint := rest.get("evaluate.ckpt"):
        rest["evaluate.ckpt"] = _evaluated(checkpoint)
    return repr(sorted(rest.items()))


def _same_seeds(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether each seed in two configurations is equal in both or a copy of the run's own ``seed``."""
    seeds = (a.get("seed"), b.get("seed"))
    pairs = [(a.get(key), b.get(key)) for key in {**a, **b} if _last(key) == "seed"]
    return all(first == second or (first, second) == seeds for first, second in pairs)


def _evaluated(checkpoint: Any) -> str:
    """Return the name of an evaluated checkpoint file; empty for the folder of a run."""
    path = Path(str(checkpoint or ""))
    return path.name if path.suffix == ".ckpt" else ""


def row_of(runs: Sequence[Run]) -> Row:
    """Compute means and sample standard deviations over runs of the metrics that all of them have."""
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    metrics = {name: [run.metrics[name] for run in runs] for name in shared}
    return Row(
        name=_common_name(runs),
        runs=list(runs),
        metrics={name: _mean(each) for name, each in metrics.items()},
        deviations={name: _deviation(each) for name, each in metrics.items()} if len(runs) > 1 else {},
    )


def _mean(metrics: Sequence[Metric]) -> Metric:
    """Average the values and the ends of the intervals of a metric over runs."""
    means = {key: sum(getattr(metric, key) for metric in metrics) / len(metrics) for key in ("value", "low", "high")}
    return metrics[0]._replace(**means)


def _deviation(metrics: Sequence[Metric]) -> float:
    """Compute the sample standard deviation of the values of runs; NaN if one is not finite."""
    values = [metric.value for metric in metrics]
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def _common_name(runs: Sequence[Run]) -> str:
    """Return a name for runs that differ only in the seed."""
    if len(runs) == 1:
        return runs[0].name
    names = [re.sub(r"-s\d+$", "", STAMP.sub("", run.name)) for run in runs]
    sweeps = {run.name.rpartition("/")[0] for run in runs}
    if len(set(names)) == 1:
        return f"{names[0]} ({len(runs)} seeds)"
    if len(sweeps) == 1 and (sweep := sweeps.pop()):
        return f"{sweep}/{','.join(run.name.rpartition('/')[2] for run in runs)} ({len(runs)} seeds)"
    return f"{runs[0].name} and {len(runs) - 1} more ({len(runs)} seeds)"


def differing(runs: Sequence[Run]) -> list[str]:
    """List the keys of the configuration in which runs differ, the method first.

    If keys with the same last part have the same values, only the shallowest is listed (``seed``, not
    ``datamodule.seed``). A key that is missing in some runs is listed only if its node exists in all runs with the same
    class, because other classes have other arguments. Null equals a missing key.
    """
    configs = [run.config for run in runs if run.config]
    nodes = [{"", *(key.rpartition(".")[0] for key in config)} for config in configs]

    def comparable(key: str) -> bool:
        """Return whether the node of a key has one class in all runs, or all runs have the key."""
        node = key.rpartition(".")[0]
        classes = [config.get(f"{node}._target_") for config in configs]
        in_all = all(node in of_run for of_run in nodes) and all(class_ == classes[0] for class_ in classes)
        return in_all or all(key in config for config in configs)

    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if comparable(key)]
    values = {key: [config.get(key) for config in configs] for key in keys}
    kept: dict[str, list[str]] = {}  # by their last parts
    for key in sorted(keys, key=lambda key: key.count(".")):
        namesakes = kept.setdefault(_last(key), [])
        is_copy = any(values[key] == values[other] for other in namesakes)
        if any(value != values[key][0] for value in values[key]) and not is_copy:
            namesakes.append(key)
    order = {key: (key != MODEL, place) for place, key in enumerate(keys)}
    return sorted((key for namesakes in kept.values() for key in namesakes), key=order.__getitem__)


def _last(key: str) -> str:
    """Return the last part of a dotted key."""
    return key.rpartition(".")[2]


def recipe_keys(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Select the keys that depend only on the method: keys of a :data:`RECIPE` node with one value per method."""
    if MODEL not in keys:
        return []
    configs = [run.config for run in runs if run.config]

    def follows(key: str) -> bool:
        """Return whether a key has one value per method."""
        of_method = {str(config.get(MODEL)): config.get(key) for config in configs}
        return all(of_method[str(config.get(MODEL))] == config.get(key) for config in configs)

    return [key for key in keys if key != MODEL and re.split(r"[.[]", key)[0] in RECIPE and follows(key)]


def row_setting(row: Row, key: str) -> str:
    """Join the distinct values of the runs of a row."""
    return ", ".join(dict.fromkeys(setting(run, key) for run in row.runs))


def typed_apart(table: Table) -> dict[Path, str]:
    """Map the folder of a run to its overrides without those that all runs share, if rows have equal settings.

    Rows can differ without different settings: parts of different classes have no common keys, and a part that is null
    in one run has no keys there. The mapping is empty if the settings distinguish all rows or there are no overrides.
    """
    settings = [tuple(row_setting(row, key) for key in table.settings) for row in table.rows]
    shared = set.intersection(*(set(run.typed) for run in table.runs))
    if any(len(row.runs) > 1 for row in table.rows):
        shared |= {override for run in table.runs for override in run.typed if override.startswith("seed=")}
    rest = {run.folder: " ".join(word.lstrip("+") for word in run.typed if word not in shared) for run in table.runs}
    return rest if len(set(settings)) < len(settings) and any(rest.values()) else {}


def best(rows: Sequence[Row], metric: str) -> Row | None:
    """Find the row that is better than every other row by more than the noise.

    Its 95 % interval over faces must not overlap that of another row. If either row is a mean over seeds, their
    difference must also exceed the pooled standard deviation over seeds.

    Returns:
        The row; None if there is none, if neither intervals nor deviations are known, or if neither lower nor higher
        values of the metric are better. Only rows whose runs have ended are considered.
    """
    rivals = [row for row in rows if row.ranked and not math.isnan(row.value(metric))]
    if len(rivals) < 2 or (better := rivals[0].metrics[metric].better) == "none":
        return None
    choose = max if better == "higher" else min
    first = choose(rivals, key=lambda row: row.value(metric))
    return first if all(_apart(first, row, metric) for row in rivals if row is not first) else None


def _apart(a: Row, b: Row, metric: str) -> bool:
    """Return whether two rows differ by more than the noise, see :func:`best`."""
    tests, one, other = [], a.metrics[metric], b.metrics[metric]
    if not any(map(math.isnan, (one.low, one.high, other.low, other.high))):
        tests.append(one.high < other.low or other.high < one.low)
    if a.deviations or b.deviations:
        freedom = len(a.runs) + len(b.runs) - 2
        deviations = [(len(row.runs) - 1, row.deviations.get(metric, 0.0)) for row in (a, b)]
        # Multiply instead of using **, which raises an OverflowError.
        squares = sum(count * deviation * deviation for count, deviation in deviations)
        tests.append(abs(one.value - other.value) > math.sqrt(squares / freedom))
    return bool(tests) and all(tests)


def paper_value(table: Table, row: Row, metric: str) -> float:
    """Return the published result for a row's method and settings on these faces; NaN if there is none."""
    config = row.runs[0].config
    method = class_name(config.get(MODEL)).lower()
    settings = {f"{key}={value}".replace(" ", "") for key, value in config.items()}  # a list without its spaces
    values = (
        entry.value
        for entry in table.published
        if entry.metric == metric and entry.method.lower() == method and settings.issuperset(entry.settings.split())
    )
    return next(values, math.nan)


def cost_of(row: Row, name: str) -> float:
    """Compute the mean of a cost, see :meth:`Run.costs`, over the runs of a row that have it; NaN if none has it."""
    values = [value for run in row.runs if not math.isnan(value := run.costs(name))]
    return sum(values) / len(values) if values else math.nan


def machines_of(table: Table, latency: str) -> list[str]:
    """List the descriptions of the machines on which a latency was measured, see :meth:`Run.machine`."""
    return sorted({run.machine(latency) for run in table.runs if not math.isnan(run.costs(latency))})


def protocol_differences(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the entries in which protocols differ, with their values."""
    values = {
        key: [protocol.get(key) for protocol in protocols]
        for key in dict.fromkeys(key for protocol in protocols for key in protocol)
    }
    return [
        f"{key} ({' | '.join(map(value_text, each))})"
        for key, each in values.items()
        if any(value != each[0] for value in each)
    ]
