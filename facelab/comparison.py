"""Runs side by side: what their folders say, and which of their numbers may stand in one table."""

import csv
import difflib
import glob
import json
import math
import re
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from facelab.atomic import replacing
from facelab.published import Published, official
from facelab.status import read_cells, read_status

FILES = ("status.json", "config.yaml", "metrics.json")
BENCHMARK, BENCHMARK_POSE = "benchmark.json", "benchmark_pose.json"
"""What benchmark.py leaves in the folder of a run: of the landmarks alone, and of these with the head's pose."""
SORT_BY = "nme_box"
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

ELSEWHERE = ("paths", "logger", "callbacks")
"""Nodes of a configuration that change where things lie and what is watched, but no number."""
PLACES = ("cache", "data", "run")
"""Keys of ``paths`` that are folders."""
MODEL = "model._target_"
RECIPE = frozenset(
    {"model", "head", "coder", "loss", "crop", "datamodule", "augment", "optimizer", "scheduler", "monitor"}
)
"""Nodes that a method brings along; ``backbone``, ``data`` and ``trainer`` are chosen beside it."""
SAID = ("dataset", "split", "faces", "layout", "box", "box_scale", "flip_test", "pose")
"""Entries of a protocol that its description has words for."""
NO_RUN = "no run"
LATENCY = "latency_p50_ms"
POSE = "pose_"
"""How the names of costs begin that are those of landmarks and head pose together."""
COSTS = {"params": ("params M", 1e-6, 2), "macs": ("MACs M", 1e-6, 1), LATENCY: ("latency ms", 1.0, 1)}
COSTS |= {
    f"{POSE}{name}": (f"with pose: {heading}", factor, decimals) for name, (heading, factor, decimals) in COSTS.items()
}
"""What a method costs for one face: name in the files to heading, factor and decimals of the column."""
MEAN = "mean"
"""State of a row of the CSV file that is the mean of runs."""
STAMP = re.compile(r"^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_")


class Run(NamedTuple):
    """What the folder of a run says of it."""

    name: str  # of the folder; in a sweep with the name of the sweep's folder before it
    folder: Path
    state: str  # as of `read_status`; unreadable (a broken file), NO_RUN (a folder of something else)
    reason: str  # why there are no numbers, or which faces they leave out; empty if all is well
    config: dict[str, Any]  # dotted key to value, as of `settings`; empty without config.yaml
    protocol: dict[str, Any]  # empty without numbers
    metrics: dict[str, float]  # fractions; NaN: no face, infinite: a point was not predicted
    counts: dict[str, int]  # faces behind each mean error
    intervals: dict[str, tuple[float, float]]  # 95 %, of some metrics
    cost: dict[str, float]  # of one face: params, macs, flops; empty where not counted
    benchmark: dict[str, Any]  # content of benchmark.json; empty where not measured
    benchmark_pose: dict[str, Any]  # the same of benchmark_pose.json
    typed: tuple[str, ...]  # of a cell of a sweep: its overrides that not all cells have, as sweep.json tells them

    @property
    def ranked(self) -> bool:
        """Whether the run has ended and has numbers."""
        return self.state in ("finished", "unknown") and bool(self.protocol)

    def faces(self, metric: str) -> int:
        """Number of faces behind a metric; rates and areas share those of ``nme_ioc``."""
        return self.counts.get(metric, self.counts.get("nme_ioc", 0))

    def costs(self, name: str) -> float:
        """One of :data:`COSTS`; NaN where it is not known."""
        if name.startswith(POSE):
            value = self.benchmark_pose.get(name.removeprefix(POSE))
        else:
            value = self.benchmark.get(name, self.cost.get(name))
        return float(value) if isinstance(value, (int, float)) else math.nan

    def machine(self, latency: str) -> str:
        """What a latency was measured on, and how; latencies of two machines cannot be compared.

        Args:
            latency: its name in :data:`COSTS`.
        """
        measured = self.benchmark_pose if latency.startswith(POSE) else self.benchmark
        conditions = ("device", "cpu", "threads", "torch", "memory_format", "compile")
        return ", ".join(f"{key} {_text(measured[key])}" for key in conditions if key in measured)


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


class Cell(NamedTuple):
    """A place in the printed form of a table."""

    text: str
    below: str = ""
    """The 95 % interval or the deviation of a number, or the faces behind a column."""
    bold: bool = False
    number: bool = False


# Reading


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read runs, none twice.

    Args:
        paths: folders of runs, folders of sweeps (whose sub-folders 0, 1, ... are runs), or patterns of such folders.
            A folder that is neither is told by its state, :data:`NO_RUN`; the cells of a sweep that have no folder
            are ``missing``.

    Raises:
        FileNotFoundError: a path leads nowhere, or there is no run at all.
        ValueError: a broken sweep.json.
    """
    typed = [str(path) for path in paths]
    folders = {folder.resolve(): folder for path in typed for folder in _find(path)}
    cells = {sweep: _cells(sweep) for sweep in {path.parent for path in folders}}
    runs = [read_run(folder, cells[path.parent].get(path.name, ())) for path, folder in folders.items()]
    if all(run.state == NO_RUN for run in runs):
        raise FileNotFoundError(
            f"no run in {', '.join(typed)}: the folder of a run holds {', '.join(FILES)}. For all folders in a folder "
            "give a pattern, such as 'logs/train/runs/*'"
        )
    return runs


def _find(path: str) -> list[Path]:
    if Path(path).exists():
        return _jobs(Path(path))
    matches = sorted(Path(match) for match in glob.glob(path, recursive=True))  # noqa: PTH207  takes absolute patterns
    if not (folders := [match for match in matches if match.is_dir()]):
        raise FileNotFoundError(f"{path}: no such folder, and as a pattern it fits none")
    return [run for folder in folders for run in _jobs(folder)]


def _jobs(folder: Path) -> list[Path]:
    """The runs of a sweep; the folder itself if it is no sweep."""
    if not folder.is_dir() or _is_run(folder):
        return [folder]
    jobs = {child.name for child in folder.iterdir() if child.is_dir() and child.name.isdecimal()} | {*_cells(folder)}
    return [folder / job for job in sorted(jobs, key=int)] or [folder]


def _cells(folder: Path) -> dict[str, tuple[str, ...]]:
    """Number of a job to the overrides that not all of them have; empty for a folder that is no sweep."""
    cells = read_cells(folder)
    shared = set.intersection(*(set(overrides) for overrides in cells.values())) if len(cells) > 1 else set()
    return {str(job): tuple(word for word in words if word not in shared) for job, words in cells.items()}


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)


def read_run(folder: Path, typed: tuple[str, ...] = ()) -> Run:
    """Read the folder of a run; what is missing or broken in it is told by ``state`` and ``reason``.

    Args:
        folder: of the run; if it is a cell of a sweep that has not begun, it does not exist.
        typed: the overrides of the cell.
    """
    path = folder.resolve()
    name = f"{path.parent.name}/{path.name}" if path.name.isdecimal() else path.name
    run = Run(name, folder, "unknown", "", {}, {}, {}, {}, {}, {}, {}, {}, typed)
    if folder.exists() and not _is_run(folder):
        return run._replace(state=NO_RUN, reason=f"holds none of {', '.join(FILES)}")
    faults = []
    for file, fields in READERS.items():
        try:
            run = run._replace(**fields(folder / file))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            faults.append(f"{file}: {_one_line(str(error))}")
    reasons = [run.reason, *faults]
    missing = [file for file in FILES if not (folder / file).exists()]
    if missing and run.state in ("finished", "unknown"):
        reasons.append(f"no {', '.join(missing)}")
    if run.protocol:
        reasons.append(_skipped(run.metrics))
    return run._replace(state="unreadable" if faults else run.state, reason="; ".join(filter(None, reasons)))


def _mapping(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(content, dict):
        raise ValueError("is no mapping")
    return content


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML was built with it


def _status(path: Path) -> dict[str, Any]:
    status = read_status(path.parent)
    return {"state": status.state, "reason": status.reason}


def _config(path: Path) -> dict[str, Any]:
    return {"config": settings(_mapping(path))}


def _benchmark(path: Path) -> dict[str, Any]:
    return {path.stem: _mapping(path)}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted key to value of what may change a number.

    What begins with one of the run's own paths begins with the name of that path instead, so that the same data on two
    machines is the same. A list of nodes also stands as the names of their classes, so that ``[]`` and
    ``[GaussianBlur]`` differ in one key.
    """
    paths = config.get("paths")
    places = {str(paths[key]): f"<{key}>" for key in PLACES if paths.get(key)} if isinstance(paths, dict) else {}

    def walk(node: dict[str, Any], at: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            place = f"{at}{key}"
            if isinstance(value, dict):
                yield from walk(value, f"{place}.")
            elif isinstance(value, list):
                yield place, [_class(item.get("_target_")) if isinstance(item, dict) else item for item in value]
                for index, item in enumerate(value):
                    if isinstance(item, dict):
                        yield from walk(item, f"{place}[{index}].")
            else:
                yield place, _placed(value, places)

    return dict(walk({key: node for key, node in config.items() if key not in ELSEWHERE}, ""))


def _placed(value: Any, places: dict[str, str]) -> Any:
    for path, name in places.items():
        if isinstance(value, str) and (value == path or value.startswith(f"{path}/")):
            return name + value[len(path) :]
    return value


def _results(path: Path) -> dict[str, Any]:
    """The fields of a :class:`Run` that ``metrics.json`` fills.

    JSON has no infinity, so it stands there as null, as does what is undefined: with faces behind it, it was infinite.
    """
    content = {"cost": {}} | _mapping(path)
    for part in ("protocol", "metrics", "counts", "intervals", "cost"):
        if not isinstance(content.get(part), dict) or (part == "protocol" and not content[part]):
            raise ValueError(f"has no `{part}`")
    counts = content["counts"]
    for name, count in counts.items():
        if not isinstance(count, int):
            raise ValueError(f"counts.{name} is {count!r}, expected a whole number")

    def number(name: str, value: Any) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        if value is not None:
            raise ValueError(f"{name} is {value!r}, expected a number")
        faces = [counts.get(name, counts.get("nme_ioc", 0))]
        if name == "nme_box_yaw_mean":  # undefined as soon as one bucket is empty
            faces += [count for bucket, count in counts.items() if bucket.startswith("nme_box_yaw_")]
        return math.inf if all(faces) else math.nan

    def interval(name: str, ends: Any) -> tuple[float, float]:
        if not isinstance(ends, list) or len(ends) != 2:
            raise ValueError(f"intervals.{name} is {ends!r}, expected two numbers")
        return number(name, ends[0]), number(name, ends[1])

    return {
        "protocol": content["protocol"],
        "metrics": {name: number(name, value) for name, value in content["metrics"].items()},
        "counts": counts,
        "intervals": {name: interval(name, ends) for name, ends in content["intervals"].items()},
        "cost": {name: number(name, value) for name, value in content["cost"].items()},
    }


READERS = {"status.json": _status, "config.yaml": _config, "metrics.json": _results}
READERS |= {BENCHMARK: _benchmark, BENCHMARK_POSE: _benchmark}
"""File of a run to what reads its fields of a :class:`Run`."""


def _skipped(metrics: dict[str, float]) -> str:
    skipped = metrics.get("faces_skipped", 0)
    return f"{skipped:.0f} faces could not be measured" if skipped else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


# Comparing


def compare(runs: Sequence[Run], metrics: Sequence[str] | None) -> list[Table]:
    """One table for each protocol, in the order of their first runs; runs without numbers are in none.

    Args:
        runs: to compare.
        metrics: the columns; None for those of :data:`MAIN` that the runs have, or all if they have none of them.

    Raises:
        ValueError: no run has a metric of that name.
    """
    measured = [run for run in runs if run.protocol]
    known = list(dict.fromkeys(name for run in measured for name in run.metrics))
    for name in metrics or ():
        if measured and name not in known:
            nearest = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(known)}"
            raise ValueError(f"no run has a metric {name}; {hint}")
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
    recipe = _recipe(runs, keys)
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


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """One row for all runs that differ only in ``seed``; a run without a configuration, or an end, is one of its own.

    A run that only repeats the seed of another is no further draw of the noise, and opens a row of its own.
    """
    groups: list[tuple[str, list[Run]]] = []
    for run in sorted(runs, key=lambda run: str(run.config.get("seed", "")).zfill(20)):
        recipe = json.dumps(_seedless(run.config), sort_keys=True, default=str)
        for other, group in groups:
            seeds = [each.config.get("seed") for each in group]
            if other == recipe and run.ranked and group[0].ranked and run.config.get("seed") not in [None, *seeds]:
                group.append(run)
                break
        else:
            groups.append((recipe, [run]))
    return [row_of(group) for _, group in groups]


def _seedless(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the seed, the copies of it that were handed on, and the run that was evaluated."""
    seed = config.get("seed")
    rest = {key: value for key, value in config.items() if not (_last(key) == "seed" and value == seed)}
    if checkpoint := rest.pop("evaluate.ckpt", None):
        path = Path(str(checkpoint))
        rest["evaluate.ckpt"] = path.name if path.suffix == ".ckpt" else ""
    return rest


def row_of(runs: Sequence[Run]) -> Row:
    """Means and sample standard deviations of runs; a metric that one of them lacks is left out."""

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
    """Keys of the configuration in which runs differ, the method first.

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
    kept: list[str] = []
    for key in sorted(keys, key=lambda key: key.count(".")):
        is_copy = any(_last(key) == _last(other) and values[key] == values[other] for other in kept)
        if any(value != values[key][0] for value in values[key]) and not is_copy:
            kept.append(key)
    return sorted(kept, key=lambda key: (key != MODEL, keys.index(key)))


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _recipe(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Those keys that only follow the method: in a :data:`RECIPE` node, and with one value for each method."""
    if MODEL not in keys:
        return []
    configs = [run.config for run in runs if run.config]

    def follows(key: str) -> bool:
        of_method = {config.get(MODEL): config.get(key) for config in configs}
        return all(of_method[config.get(MODEL)] == config.get(key) for config in configs)

    return [key for key in keys if key != MODEL and re.split(r"[.[]", key)[0] in RECIPE and follows(key)]


def best(rows: Sequence[Row], metric: str) -> Row | None:
    """The row that is better than every other by more than the noise.

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
        squares = sum((len(row.runs) - 1) * row.deviations.get(metric, 0.0) ** 2 for row in (a, b))
        signs.append(abs(a.metrics[metric] - b.metrics[metric]) > math.sqrt(squares / freedom))
    return bool(signs) and all(signs)


def paper_value(table: Table, row: Row, metric: str) -> float:
    """What the paper of a row's method reports for its backbone on these faces; NaN if nothing."""
    config = row.runs[0].config
    method, backbone = _class(config.get(MODEL)).lower(), config.get("backbone.name")
    found = (
        entry.value
        for entry in table.published
        if entry.metric == metric and entry.method.lower() == method and entry.backbone in ("", backbone)
    )
    return next(found, math.nan)


# Words


def describe(protocol: dict[str, Any]) -> str:
    """A protocol in words."""
    said = {key: _text(protocol[key]) if key in protocol else "?" for key in SAID}
    words = (
        "{dataset} {split}, {faces} faces, {layout}, box: {box} x {box_scale}, flip test: {flip_test}, pose: {pose}"
    ).format(**said)
    rest = [f"{key}: {_text(value)}" for key, value in protocol.items() if key not in SAID]
    return ", ".join([words, *rest])


def headings(tables: Sequence[Table]) -> list[str]:
    """What stands over each table: its protocol, and its number if it is not the only one."""
    numbers = [f"Table {number}: " for number in range(1, len(tables) + 1)] if len(tables) > 1 else [""] * len(tables)
    return [number + describe(table.protocol) for number, table in zip(numbers, tables, strict=True)]


def disagreement(tables: Sequence[Table]) -> str:
    """The entries in which protocols differ; empty if there is but one protocol."""
    parts = protocol_differences([table.protocol for table in tables])
    return f"Numbers of different tables cannot be compared; their protocols differ in {', '.join(parts)}." * bool(
        parts
    )


def protocol_differences(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """The entries in which protocols differ, with their values."""
    values = {
        key: [protocol.get(key) for protocol in protocols]
        for key in dict.fromkeys(key for protocol in protocols for key in protocol)
    }
    return [
        f"{key} ({' | '.join(map(_text, each))})"
        for key, each in values.items()
        if any(value != each[0] for value in each)
    ]


def setting(run: Run, key: str) -> str:
    """A value of a run's configuration; empty where it has none."""
    value = run.config.get(key)
    return _class(value) if key.endswith("_target_") else "" if value is None else _text(value)


def label(key: str) -> str:
    """What stands over a column of settings: ``model`` for ``model._target_``."""
    return key.removesuffix("._target_")


def _class(target: Any) -> str:
    return str(target or "").rpartition(".")[2]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def row_setting(row: Row, key: str) -> str:
    """The values of the runs of a row, each once."""
    return ", ".join(dict.fromkeys(setting(run, key) for run in row.runs))


def brief_setting(row: Row, key: str) -> str:
    """The same to be read: numbers to four digits, long texts cut."""
    values = [run.config.get(key) for run in row.runs]
    if all(isinstance(value, float) for value in values):
        return ", ".join(dict.fromkeys(f"{value:.4g}" for value in values))
    return _short(row_setting(row, key), 60)


def lines_of(table: Table, each: bool) -> list[Row]:
    """The rows of a table; if asked, every row over seeds is followed by its runs."""
    return [
        line
        for row in table.rows
        for line in [row, *([row_of([run]) for run in row.runs] if each and len(row.runs) > 1 else [])]
    ]


def grid(table: Table, *, each: bool = False) -> list[list[Cell]]:
    """A table: the headings, then a row for each run, or for each set of runs that differ in the seed.

    Errors are in percent, those of angles in degrees.

    Args:
        table: to show.
        each: give a row to the single runs of such a set as well.
    """
    noted = any(run.reason for run in table.runs)
    whole = [run for run in table.runs if run.ranked] or table.runs
    costs = [name for name in COSTS if any(not math.isnan(run.costs(name)) for run in table.runs)]
    words = typed_apart(table)
    heading = [Cell("run"), *([Cell("typed")] if words else []), *(Cell(label(key)) for key in table.settings)]
    with_paper = []
    for metric in table.metrics:
        faces = sorted({run.faces(metric) for run in whole if metric in run.metrics}) or [0]
        span = f"{faces[0]} faces" if len(faces) == 1 else f"{faces[0]}..{faces[-1]} faces"
        heading.append(Cell(metric, "" if metric in WHOLE else span, number=True))
        if any(not math.isnan(paper_value(table, row, metric)) for row in table.rows):
            with_paper.append(metric)
            heading.append(Cell("paper", metric, number=True))
    heading += [Cell(COSTS[name][0], number=True) for name in costs]
    cells = [heading + [Cell("note")] * noted]
    winners = {metric: best(table.rows, metric) for metric in table.metrics}
    for row in lines_of(table, each):
        line = [Cell(row.name), *([Cell(words[row.runs[0].folder] or "-")] if words else [])]
        line += [Cell(brief_setting(row, key) or "-") for key in table.settings]
        for metric in table.metrics:
            line.append(_number_cell(row, metric, winners[metric] is row))
            if metric in with_paper:
                line.append(Cell(_known(100 * paper_value(table, row, metric), 2), number=True))
        line += [Cell(_known(cost_of(row, name) * COSTS[name][1], COSTS[name][2]), number=True) for name in costs]
        cells.append(line + [Cell(_short(_notes(row), 300))] * noted)
    return cells


def typed_apart(table: Table) -> dict[Path, str]:
    """Folder of a run to the overrides that not every run has, where settings alone do not tell rows apart.

    Parts of different classes have no settings in common, and a part that is chosen in one run and null in another has
    none to compare. Empty where settings suffice, or nothing was typed.
    """
    seen = [tuple(row_setting(row, key) for key in table.settings) for row in table.rows]
    shared = set.intersection(*(set(run.typed) for run in table.runs))
    if any(len(row.runs) > 1 for row in table.rows):
        shared |= {word for run in table.runs for word in run.typed if word.startswith("seed=")}
    words = {run.folder: " ".join(word for word in run.typed if word not in shared) for run in table.runs}
    return words if len(set(seen)) < len(seen) and any(words.values()) else {}


def cost_of(row: Row, name: str) -> float:
    """Mean of one of :data:`COSTS` over the runs of a row that know it; NaN if none does."""
    known = [value for run in row.runs if not math.isnan(value := run.costs(name))]
    return sum(known) / len(known) if known else math.nan


def machines_of(table: Table, latency: str) -> list[str]:
    """The machines on which one of the latencies of :data:`COSTS` was measured."""
    return sorted({run.machine(latency) for run in table.runs if not math.isnan(run.costs(latency))})


def _number_cell(row: Row, metric: str, bold: bool) -> Cell:
    value = row.metrics.get(metric, math.nan)
    if metric in WHOLE:
        return Cell(_known(value, 0), number=True)
    below, ends = "", row.intervals.get(metric, (math.nan, math.nan))
    if len(row.runs) > 1 and not math.isnan(deviation := row.deviations.get(metric, math.nan)):
        below = f"± {_shown(metric, deviation)}"
    elif len(row.runs) == 1 and not any(map(math.isnan, ends)):
        below = "..".join(_shown(metric, end) for end in ends)
    return Cell("-" if math.isnan(value) else _shown(metric, value), below, bold, number=True)


def _known(value: float, decimals: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def _shown(metric: str, value: float) -> str:
    """A number as it is read: degrees for angles, percent for all others."""
    return f"{value if metric.startswith(DEGREES) else 100 * value:.2f}"


def _notes(row: Row) -> str:
    notes = [run.reason if run.state == "finished" else _state(run) for run in row.runs]
    return "; ".join(dict.fromkeys(filter(None, notes)))


def _state(run: Run) -> str:
    return ": ".join(filter(None, (run.state, run.reason)))


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" ...")


def grid_without_numbers(runs: Sequence[Run]) -> list[list[Cell]]:
    """The runs that stand in no table, what was chosen for them, and why; empty if there are none.

    What was chosen are a sweep's overrides, as typed, or else the settings in which any of the runs differ.
    """
    missing = [run for run in runs if not run.protocol]
    keys = differing(runs)
    keys = [key for key in keys if key not in _recipe(runs, keys)]
    rows = []
    for run in sorted(missing, key=_natural):
        values = [f"{label(key)}={value}" for key in keys if (value := setting(run, key))]
        chosen = _short(" ".join(run.typed or values), 200)
        rows.append([run.name, chosen or "-", run.state, _short(run.reason, 300)])
    heading = ["run", "settings", "state", "why it has no numbers"]
    return [[Cell(text) for text in row] for row in [heading, *rows]] if rows else []


def _natural(run: Run) -> list[tuple[bool, int, str]]:
    """Job 10 comes after job 2."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", run.name)]


def remarks(table: Table) -> list[str]:
    """What is to be said below a table."""
    lines = [
        "In percent, with 95 % intervals over faces. Bold: the best, where its interval meets no other of its column."
    ]
    if any(row.deviations for row in table.rows):
        lines = [
            "In percent: 95 % intervals over faces; of runs that differ only in the seed, mean ± sample standard "
            "deviation over the seeds. Bold: the best, where its interval (of means: the mean of the runs' intervals) "
            "meets no other of its column and, beside means, its lead exceeds the pooled standard deviation, each "
            "where known."
        ]
    if angles := [metric for metric in table.metrics if metric.startswith(DEGREES)]:
        lines.append(f"{', '.join(angles)}: degrees, not percent.")
    if sources := sorted({entry.source for entry in _papers(table)}):
        lines.append(
            f"paper: what is published for the method and backbone on these faces; its crop, training set and frame of "
            f"measurement may differ. From {'; '.join(sources)}."
        )
    if len(machines := {*machines_of(table, LATENCY), *machines_of(table, POSE + LATENCY)}) > 1:
        lines.append(f"Latencies of different machines cannot be compared: {'; '.join(sorted(machines))}.")
    if table.recipe:
        lines.append(f"Also differ, with one value for each model: {', '.join(map(label, table.recipe))}.")
    if not all(run.ranked for run in table.runs):
        lines.append("Last, without a place: runs that have not ended.")
    return lines


def _papers(table: Table) -> list[Published]:
    shown = {(row.name, metric): paper_value(table, row, metric) for row in table.rows for metric in table.metrics}
    values = {(metric, value) for (_, metric), value in shown.items()}
    return [entry for entry in table.published if (entry.metric, entry.value) in values]


# Files


def write_markdown(path: Path, runs: Sequence[Run], tables: Sequence[Table], *, each: bool) -> None:
    """Write the tables in percent, as Markdown; with ``each`` the single runs of a row over seeds as well."""
    blocks = [disagreement(tables)]
    for heading, table in zip(headings(tables), tables, strict=True):
        blocks += [f"**{_escape(heading)}**", _markdown(grid(table, each=each))]
        blocks += [_escape(line) for line in remarks(table)]
    if rows := grid_without_numbers(runs):
        blocks += ["**Runs without numbers**", _markdown(rows)]
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join(filter(None, blocks)) + "\n", encoding="utf-8")


def _markdown(rows: list[list[Cell]]) -> str:
    rule = ["---:" if cell.number else "---" for cell in rows[0]]
    heading, *body = [[_markdown_cell(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heading, rule, *body])


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_escape(cell.text)}**" if cell.bold else _escape(cell.text)
    return f"{text} ({cell.below})" if cell.below else text


def _escape(text: str) -> str:
    return re.sub(r"([\\|*<>`])", r"\\\1", text)


def write_csv(path: Path, runs: Sequence[Run], tables: Sequence[Table]) -> None:
    """Write one row for each run, and one for each mean over seeds before them: fractions in full.

    What is not defined is an empty cell. ``runs`` is the number of runs behind a row, and ``state`` of a mean is
    :data:`MEAN`. ``config.*`` are all settings in which any two of the runs differ, ``<metric>_low`` and
    ``<metric>_high`` its 95 % interval, ``<metric>_sd`` the standard deviation over seeds, ``<metric>_paper`` what is
    published for the method, ``<metric>_faces`` the faces behind it.
    """
    keys = differing(runs)
    entries = list(dict.fromkeys(entry for table in tables for entry in table.protocol))
    metrics = list(dict.fromkeys(metric for table in tables for metric in table.metrics))
    costs = [name for name in COSTS if any(not math.isnan(run.costs(name)) for run in runs)]
    order: list[tuple[str, Table | None, Row]] = [
        (str(number), table, row) for number, table in enumerate(tables, start=1) for row in lines_of(table, each=True)
    ]
    order += [("", None, row_of([run])) for run in sorted(runs, key=_natural) if not run.protocol]
    rows = []
    for number, table, row in order:
        first, alone = row.runs[0], len(row.runs) == 1
        columns = {
            "table": number,
            "run": row.name,
            "runs": str(len(row.runs)),
            "folder": first.folder if alone else "",
            "state": first.state if alone else MEAN,
            "reason": _notes(row) if not alone else first.reason,
            "typed": " ".join(first.typed) if alone else "",
            **{f"config.{label(key)}": row_setting(row, key) for key in keys},
            **{f"protocol.{entry}": _plain(first.protocol.get(entry)) for entry in entries},
        }
        for metric in metrics:
            columns |= _columns(row, metric, table)
        rows.append(columns | {name: _plain(cost_of(row, name)) for name in costs})
    names = list(dict.fromkeys(name for row in rows for name in row))
    filled = [name for name in names if not name.endswith(("_low", "_sd", "_high", "_paper")) or _any(rows, name)]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, filled, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _any(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(row.get(name) for row in rows)


def _columns(row: Row, metric: str, table: Table | None) -> dict[str, str]:
    columns = {metric: _plain(row.metrics.get(metric))}
    if metric in WHOLE:
        return columns
    low, high = row.intervals.get(metric, (math.nan, math.nan)) if len(row.runs) == 1 else (math.nan, math.nan)
    return columns | {
        f"{metric}_low": _plain(low),
        f"{metric}_high": _plain(high),
        f"{metric}_sd": _plain(row.deviations.get(metric)),
        f"{metric}_paper": _plain(paper_value(table, row, metric) if table else None),
        f"{metric}_faces": str(row.runs[0].faces(metric)) if metric in row.metrics else "",
    }


def _plain(value: Any) -> str:
    return "" if value is None or value != value else str(value)
