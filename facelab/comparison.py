"""Runs side by side: what their folders say, and which of their numbers may stand in one table."""

import csv
import difflib
import glob
import json
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from facelab.atomic import replacing

FILES = ("status.json", "config.yaml", "metrics.json")
SORT_BY = "nme_box"
MAIN = (
    *("nme_ioc", "nme_box", "fr08_ioc", "auc08_ioc"),
    *("nme_box_yaw_0_30", "nme_box_yaw_30_60", "nme_box_yaw_60_90", "nme_box_yaw_mean"),
)
"""The metrics that are shown unless others are asked for."""
WHOLE = ("faces", "faces_skipped")
"""Metrics that count faces; the others are fractions."""
LOWER, HIGHER = ("nme_", "fr"), ("auc",)
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


class Run(NamedTuple):
    """What the folder of a run says of it."""

    name: str  # of the folder; in a sweep with the name of the sweep's folder before it
    folder: Path
    state: str  # finished, failed, running; unreadable (a broken file), unknown (no status.json), NO_RUN
    reason: str  # why there are no numbers, or which faces they leave out; empty if all is well
    config: dict[str, Any]  # dotted key to value, as of `settings`; empty without config.yaml
    protocol: dict[str, Any]  # empty without numbers
    metrics: dict[str, float]  # fractions; NaN: no face, infinite: a point was not predicted
    counts: dict[str, int]  # faces behind each mean error
    intervals: dict[str, tuple[float, float]]  # 95 %, of some metrics

    @property
    def ranked(self) -> bool:
        """Whether the run has ended and has numbers."""
        return self.state in ("finished", "unknown") and bool(self.protocol)

    def faces(self, metric: str) -> int:
        """Number of faces behind a metric; rates and areas share those of ``nme_ioc``."""
        return self.counts.get(metric, self.counts.get("nme_ioc", 0))


class Table(NamedTuple):
    """Runs of one protocol, the best first."""

    protocol: dict[str, Any]
    runs: list[Run]
    settings: list[str]  # keys of the configuration in which the runs differ
    recipe: list[str]  # further such keys, which have one value per method
    metrics: list[str]


class Cell(NamedTuple):
    """A place in the printed form of a table."""

    text: str
    below: str = ""
    """The 95 % interval of a number, or the faces behind a column."""
    bold: bool = False
    number: bool = False


# Reading


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read runs, none twice.

    Args:
        paths: folders of runs, folders of sweeps (whose sub-folders 0, 1, ... are runs), or patterns of such folders.
            A folder that is neither is told by its state, :data:`NO_RUN`.

    Raises:
        FileNotFoundError: a path leads nowhere, or there is no run at all.
    """
    typed = [str(path) for path in paths]
    folders = {folder.resolve(): folder for path in typed for folder in _find(path)}
    runs = [read_run(folder) for folder in folders.values()]
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
    jobs = [child for child in folder.iterdir() if child.is_dir() and child.name.isdecimal()]
    return sorted(jobs, key=lambda job: int(job.name)) or [folder]


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (*FILES, ".hydra"))


def read_run(folder: Path) -> Run:
    """Read the folder of a run; what is missing or broken in it is told by ``state`` and ``reason``."""
    path = folder.resolve()
    name = f"{path.parent.name}/{path.name}" if path.name.isdecimal() else path.name
    run = Run(name, folder, "unknown", "", {}, {}, {}, {}, {})
    if not _is_run(folder):
        return run._replace(state=NO_RUN, reason=f"holds none of {', '.join(FILES)}")
    faults, missing = [], []
    for file, fields in zip(FILES, (_status, _config, _results), strict=True):
        try:
            run = run._replace(**fields(_mapping(folder / file)))
        except FileNotFoundError:
            missing.append(file)
        except (OSError, ValueError) as error:
            faults.append(f"{file}: {_one_line(str(error))}")
    reasons = [run.reason, *faults]
    if missing and run.state not in ("failed", "running"):
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


def _status(content: dict[str, Any]) -> dict[str, Any]:
    state, reason = str(content.get("state", "unknown")), _one_line(str(content.get("reason", "")))
    if state == "running":
        reason = "since {} on {}, process {}".format(*(content.get(key, "?") for key in ("started", "host", "pid")))
    return {"state": state, "reason": reason}


def _config(content: dict[str, Any]) -> dict[str, Any]:
    return {"config": settings(content)}


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


def _results(content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a :class:`Run` that ``metrics.json`` fills.

    JSON has no infinity, so it stands there as null, as does what is undefined: with faces behind it, it was infinite.
    """
    for part in ("protocol", "metrics", "counts", "intervals"):
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
    }


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
        settings=[key for key in keys if key not in recipe],
        recipe=recipe,
        metrics=list(dict.fromkeys(metrics)) if metrics else [name for name in MAIN if name in names] or names,
    )


def _rank(run: Run) -> tuple[bool, bool, float, str]:
    value = run.metrics.get(SORT_BY, math.nan)
    return not run.ranked, math.isnan(value), 0.0 if math.isnan(value) else value, run.name


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


def best(runs: Sequence[Run], metric: str) -> Run | None:
    """The run that is better than every other by more than the noise: its 95 % interval meets none of theirs.

    None where there is no such run, where an interval is not known, or where it is not known which way is better.
    Only runs that have ended take part.
    """
    rivals = [run for run in runs if run.ranked and not math.isnan(run.metrics.get(metric, math.nan))]
    if len(rivals) < 2 or not metric.startswith((*LOWER, *HIGHER)):
        return None
    if not all(metric in run.intervals for run in rivals):
        return None
    choose = max if metric.startswith(HIGHER) else min
    first = choose(rivals, key=lambda run: run.metrics[metric])
    low, high = first.intervals[metric]
    others = [run.intervals[metric] for run in rivals if run is not first]
    return first if all(high < other_low or other_high < low for other_low, other_high in others) else None


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
    if len(tables) < 2:
        return ""
    protocols = [table.protocol for table in tables]
    parts = []
    for key in dict.fromkeys(key for protocol in protocols for key in protocol):
        values = [protocol.get(key) for protocol in protocols]
        if any(value != values[0] for value in values):
            parts.append(f"{key} ({' | '.join(map(_text, values))})")
    return f"Numbers of different tables cannot be compared; their protocols differ in {', '.join(parts)}."


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


def grid(table: Table) -> list[list[Cell]]:
    """A table in percent: the headings, then a row for each run."""
    noted = any(run.reason for run in table.runs)
    whole = [run for run in table.runs if run.ranked] or table.runs
    heading = [Cell("run"), *(Cell(label(key)) for key in table.settings)]
    for metric in table.metrics:
        faces = sorted({run.faces(metric) for run in whole})
        span = f"{faces[0]} faces" if len(faces) == 1 else f"{faces[0]}..{faces[-1]} faces"
        heading.append(Cell(metric, "" if metric in WHOLE else span, number=True))
    rows = [heading + [Cell("note")] * noted]
    winners = {metric: best(table.runs, metric) for metric in table.metrics}
    for run in table.runs:
        settings_ = [Cell(_short(setting(run, key), 60) or "-") for key in table.settings]
        numbers = [_number_cell(run, metric, winners[metric] is run) for metric in table.metrics]
        note = [Cell(_short(_note(run), 300))] * noted
        rows.append([Cell(run.name), *settings_, *numbers, *note])
    return rows


def _number_cell(run: Run, metric: str, bold: bool) -> Cell:
    value = run.metrics.get(metric, math.nan)
    if metric in WHOLE:
        return Cell("-" if math.isnan(value) else f"{value:.0f}", number=True)
    ends = run.intervals.get(metric, (math.nan, math.nan))
    below = "" if any(map(math.isnan, ends)) else "..".join(map(_percent, ends))
    return Cell("-" if math.isnan(value) else _percent(value), below, bold, number=True)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _note(run: Run) -> str:
    return run.reason if run.state == "finished" else ": ".join(filter(None, (run.state, run.reason)))


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" ...")


def grid_without_numbers(runs: Sequence[Run]) -> list[list[Cell]]:
    """The runs that stand in no table, and why; empty if there are none. Their settings are those of all runs."""
    missing = [run for run in runs if not run.protocol]
    keys = differing(runs)
    keys = [key for key in keys if key not in _recipe(runs, keys)]
    rows = [
        [run.name, *(_short(setting(run, key), 60) or "-" for key in keys), run.state, _short(run.reason, 300)]
        for run in sorted(missing, key=lambda run: run.name)
    ]
    heading = ["run", *map(label, keys), "state", "why it has no numbers"]
    return [[Cell(text) for text in row] for row in [heading, *rows]] if rows else []


def remarks(table: Table) -> list[str]:
    """What is to be said below a table."""
    lines = ["In percent, with 95 % intervals; bold: the best, where its interval meets no other of its column."]
    if table.recipe:
        lines.append(f"Also differ, with one value for each model: {', '.join(map(label, table.recipe))}.")
    if not all(run.ranked for run in table.runs):
        lines.append("Last, without a place: runs that have not ended.")
    return lines


# Files


def write_markdown(path: Path, runs: Sequence[Run], tables: Sequence[Table]) -> None:
    """Write the tables in percent, as Markdown."""
    blocks = [disagreement(tables)]
    for heading, table in zip(headings(tables), tables, strict=True):
        blocks += [f"**{_escape(heading)}**", _markdown(grid(table))]
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
    """Write one row for each run: fractions in full; what is not defined is an empty cell.

    ``config.*`` are all settings in which any two of the runs differ, ``<metric>_low`` and ``<metric>_high`` its 95 %
    interval, ``<metric>_faces`` the faces behind it.
    """
    order = [(str(number), run) for number, table in enumerate(tables, start=1) for run in table.runs]
    order += [("", run) for run in runs if not run.protocol]
    keys = differing(runs)
    entries = list(dict.fromkeys(entry for table in tables for entry in table.protocol))
    metrics = list(dict.fromkeys(metric for table in tables for metric in table.metrics))
    rows = [
        {
            "table": number,
            "run": run.name,
            "folder": run.folder,
            "state": run.state,
            "reason": run.reason,
            **{f"config.{label(key)}": setting(run, key) for key in keys},
            **{f"protocol.{entry}": _plain(run.protocol.get(entry)) for entry in entries},
            **{name: value for metric in metrics for name, value in _columns(run, metric, runs).items()},
        }
        for number, run in order
    ]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _columns(run: Run, metric: str, runs: Sequence[Run]) -> dict[str, str]:
    columns = {metric: _plain(run.metrics.get(metric))}
    if metric in WHOLE:
        return columns
    if any(metric in other.intervals for other in runs):
        low, high = run.intervals.get(metric, (math.nan, math.nan))
        columns |= {f"{metric}_low": _plain(low), f"{metric}_high": _plain(high)}
    return columns | {f"{metric}_faces": str(run.faces(metric)) if metric in run.metrics else ""}


def _plain(value: Any) -> str:
    return "" if value is None or value != value else str(value)
