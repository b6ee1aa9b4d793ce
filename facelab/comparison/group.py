"""Runs side by side: which of their numbers may stand in one table, and which are better."""

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

SORT_BY = "nme_box"
"""The metric by which runs are sorted."""
MAIN = (
    *("nme_ioc", "nme_box", "fr08_ioc", "auc08_ioc"),
    *("nme_box_yaw_0_30", "nme_box_yaw_30_60", "nme_box_yaw_60_90", "nme_box_yaw_mean", "mae_angle"),
)
"""The metrics that are shown unless others are asked for."""
WHOLE = ("faces", "faces_skipped")
"""Metrics that count faces; the others are fractions."""
DEGREES = "mae_"
"""How the names of metrics begin that are angles; they are shown as they are, and the others in percent."""
LOWER, HIGHER = ("nme_", "fr", DEGREES), ("auc",)
"""How the names of metrics begin of which less, or more, is better."""
MODEL = "model._target_"
"""Key of the method."""
RECIPE = frozenset(
    {"model", "head", "coder", "loss", "crop", "datamodule", "augment", "optimizer", "scheduler", "monitor"}
)
"""Nodes that a method brings along; ``backbone``, ``data`` and ``trainer`` are chosen beside it."""


class Row(NamedTuple):
    """A run, or runs that differ in nothing but their seeds."""

    name: str
    runs: list[Run]  # by seed
    metrics: dict[str, float]  # means over the runs
    deviations: dict[str, float]  # sample standard deviations over the runs; empty for one run
    intervals: dict[str, tuple[float, float]]  # means over the runs of the ends of the 95 % intervals

    @property
    def ranked(self) -> bool:
        """Whether the runs have ended and have numbers."""
        return all(run.ranked for run in self.runs)


class Table(NamedTuple):
    """Runs of one protocol, the best first."""

    protocol: dict[str, Any]
    runs: list[Run]
    rows: list[Row]
    published: list[Published]  # on the same faces
    settings: list[str]  # keys of the configuration in which the runs differ
    recipe: list[str]  # further such keys, which have one value per method
    metrics: list[str]


def compare(runs: Sequence[Run], metrics: Sequence[str] | None) -> list[Table]:
    """Make one table for each protocol, in the order of their first runs; runs without numbers are in none.

    Args:
        runs: to compare.
        metrics: the columns; None for those of :data:`MAIN` that the runs have, or all if they have none of them.

    Raises:
        RunError: no run has a metric of that name.
    """
    measured = [run for run in runs if run.protocol]
    known = list(dict.fromkeys(name for run in measured for name in run.metrics))
    for name in metrics or ():
        if measured and name not in known:
            nearest = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(known)}"
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
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    keys = differing(runs)
    recipe = recipe_keys(runs, keys)
    return Table(
        protocol=runs[0].protocol,
        runs=sorted(runs, key=_rank),
        rows=sorted(rows_of(runs), key=_rank),
        published=official(runs[0].protocol),
        settings=[key for key in keys if key not in recipe],
        recipe=recipe,
        metrics=list(dict.fromkeys(metrics)) if metrics else [name for name in MAIN if name in names] or names,
    )


def _rank(entry: Run | Row) -> tuple[bool, bool, float, str]:
    value = entry.metrics.get(SORT_BY, math.nan)
    return not entry.ranked, math.isnan(value), 0.0 if math.isnan(value) else value, entry.name


def natural_order(run: Run) -> list[tuple[bool, int, str]]:
    """Give a key to sort runs by name in which job 10 comes after job 2."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", run.name)]


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Put all runs that differ only in ``seed`` into one row; one without a configuration, or an end, has its own.

    A run that only repeats the seed of another is no further draw of the noise, and opens a row of its own.
    """
    groups: list[tuple[str, list[Run]]] = []
    for run in sorted(runs, key=lambda run: str(run.config.get("seed", "")).zfill(20)):
        recipe = _recipe(run.config)
        for other, group in groups:
            fresh = run.config.get("seed") not in [None, *(each.config.get("seed") for each in group)]
            alike = other == recipe and _same_seeds(group[0].config, run.config)
            if alike and fresh and run.ranked and group[0].ranked:
                group.append(run)
                break
        else:
            groups.append((recipe, [run]))
    return [row_of(group) for _, group in groups]


def _recipe(config: Mapping[str, Any]) -> str:
    """Write a configuration as text, without seeds and without the folder of the run that was evaluated."""
    rest = {key: value for key, value in config.items() if _last(key) != "seed" and value is not None}
    if checkpoint := rest.get("evaluate.ckpt"):
        rest["evaluate.ckpt"] = _evaluated(checkpoint)
    return repr(sorted(rest.items()))


def _same_seeds(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Tell whether each seed of two configurations is the same, or a copy of the run's own that was handed on."""
    seeds = (a.get("seed"), b.get("seed"))
    pairs = [(a.get(key), b.get(key)) for key in {**a, **b} if _last(key) == "seed"]
    return all(first == second or (first, second) == seeds for first, second in pairs)


def _evaluated(checkpoint: Any) -> str:
    """Name the file that was evaluated; empty for a folder, whose run chose it."""
    path = Path(str(checkpoint or ""))
    return path.name if path.suffix == ".ckpt" else ""


def row_of(runs: Sequence[Run]) -> Row:
    """Take means and sample standard deviations of runs; a metric that one of them lacks is left out."""

    def shared(parts: Sequence[Mapping[str, Any]]) -> list[str]:
        return [name for name in parts[0] if all(name in part for part in parts)]

    metrics = {name: [run.metrics[name] for run in runs] for name in shared([run.metrics for run in runs])}
    ends = {name: [run.intervals[name] for run in runs] for name in shared([run.intervals for run in runs])}
    return Row(
        name=_common_name(runs),
        runs=list(runs),
        metrics={name: sum(values) / len(values) for name, values in metrics.items()},
        deviations={name: _deviation(values) for name, values in metrics.items()} if len(runs) > 1 else {},
        intervals={
            name: (sum(low for low, _ in pairs) / len(pairs), sum(high for _, high in pairs) / len(pairs))
            for name, pairs in ends.items()
        },
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def _common_name(runs: Sequence[Run]) -> str:
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

    A value that was handed on under the same name stands only at its shallowest place (``seed``, not
    ``datamodule.seed``). A key that some runs lack counts only where all have the node it belongs to, of one class:
    other classes have other arguments. A null is as good as not there.
    """
    configs = [run.config for run in runs if run.config]
    nodes = [{"", *(key.rpartition(".")[0] for key in config)} for config in configs]

    def comparable(key: str) -> bool:
        node = key.rpartition(".")[0]
        classes = [config.get(f"{node}._target_") for config in configs]
        in_all = all(node in there for there in nodes) and all(class_ == classes[0] for class_ in classes)
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
    return key.rpartition(".")[2]


def recipe_keys(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Pick those keys that only follow the method: in a :data:`RECIPE` node, and with one value for each method."""
    if MODEL not in keys:
        return []
    configs = [run.config for run in runs if run.config]

    def follows(key: str) -> bool:
        of_method = {str(config.get(MODEL)): config.get(key) for config in configs}
        return all(of_method[str(config.get(MODEL))] == config.get(key) for config in configs)

    return [key for key in keys if key != MODEL and re.split(r"[.[]", key)[0] in RECIPE and follows(key)]


def row_setting(row: Row, key: str) -> str:
    """Join the values of the runs of a row, each once."""
    return ", ".join(dict.fromkeys(setting(run, key) for run in row.runs))


def typed_apart(table: Table) -> dict[Path, str]:
    """Map the folder of a run to the overrides that not every run has, where settings do not tell rows apart.

    Parts of different classes have no settings in common, and a part that is chosen in one run and null in another has
    none to compare. Empty where settings suffice, or nothing was typed.
    """
    seen = [tuple(row_setting(row, key) for key in table.settings) for row in table.rows]
    shared = set.intersection(*(set(run.typed) for run in table.runs))
    if any(len(row.runs) > 1 for row in table.rows):
        shared |= {word for run in table.runs for word in run.typed if word.startswith("seed=")}
    words = {run.folder: " ".join(word for word in run.typed if word not in shared) for run in table.runs}
    return words if len(set(seen)) < len(seen) and any(words.values()) else {}


def best(rows: Sequence[Row], metric: str) -> Row | None:
    """Find the row that is better than every other by more than the noise.

    Its 95 % interval over faces must not meet that of the other, and where either is a mean over seeds, their
    difference must exceed the pooled standard deviation of the seeds.

    None where there is no such row, where the noise of a difference is not known at all, or where it is not known
    which way is better. Only runs that have ended take part.
    """
    rivals = [row for row in rows if row.ranked and not math.isnan(row.metrics.get(metric, math.nan))]
    if len(rivals) < 2 or not metric.startswith((*LOWER, *HIGHER)):
        return None
    choose = max if metric.startswith(HIGHER) else min
    first = choose(rivals, key=lambda row: row.metrics[metric])
    return first if all(_apart(first, row, metric) for row in rivals if row is not first) else None


def _apart(a: Row, b: Row, metric: str) -> bool:
    signs = []
    if metric in a.intervals and metric in b.intervals:
        (a_low, a_high), (b_low, b_high) = a.intervals[metric], b.intervals[metric]
        signs.append(a_high < b_low or b_high < a_low)
    if a.deviations or b.deviations:
        freedom = len(a.runs) + len(b.runs) - 2
        deviations = [(len(row.runs) - 1, row.deviations.get(metric, 0.0)) for row in (a, b)]
        squares = sum(count * deviation * deviation for count, deviation in deviations)  # ** would overflow
        signs.append(abs(a.metrics[metric] - b.metrics[metric]) > math.sqrt(squares / freedom))
    return bool(signs) and all(signs)


def paper_value(table: Table, row: Row, metric: str) -> float:
    """Give what the paper of a row's method reports for its backbone on these faces; NaN if nothing."""
    config = row.runs[0].config
    method, backbone = class_name(config.get(MODEL)).lower(), config.get("backbone.name")
    found = (
        entry.value
        for entry in table.published
        if entry.metric == metric and entry.method.lower() == method and entry.backbone in ("", backbone)
    )
    return next(found, math.nan)


def cost_of(row: Row, name: str) -> float:
    """Take the mean of a cost, see :meth:`Run.costs`, over the runs of a row that know it; NaN if none does."""
    known = [value for run in row.runs if not math.isnan(value := run.costs(name))]
    return sum(known) / len(known) if known else math.nan


def machines_of(table: Table, latency: str) -> list[str]:
    """List the machines on which a latency was measured, see :meth:`Run.machine`."""
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
