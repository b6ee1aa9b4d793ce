"""What the folder of a run says of it."""

import glob
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from facelab.errors import RunError
from facelab.files import read_json, read_yaml
from facelab.renames import renamed_config
from facelab.run_folder import STAMPED, RunFolder, is_infinite, read_jobs, read_status, result_settings

PLACES = ("cache", "data", "run")
"""Keys of ``paths`` that are folders."""
NO_RUN = "no run"
"""State of a folder that holds none of the files of a run."""
LATENCY = "latency_p50_ms"
"""Name of a cost that depends on the machine."""
POSE = "pose_"
"""How the names of costs begin that are those of landmarks and head pose together."""
STAMP = re.compile(f"{STAMPED}_")
"""Date and time with which the name of a run begins."""
UNCOUNTED = frozenset(
    {
        *("test", "num_workers", "datamodule.num_workers"),
        *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps"),
    }
)
"""Settings that change no number, also those of an evaluation: how fast a run is, and what is seen of it meanwhile.

What is random in training follows from seed, epoch and row, whichever worker reads the row.
"""
MOST_ENTRIES = 1000
"""Entries of each part of a metrics.json; a test writes about a hundred."""


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
    typed: tuple[str, ...]  # of a job of a sweep: its overrides that not all jobs have, as sweep.json tells them

    @property
    def ranked(self) -> bool:
        """Whether the run has ended and has numbers."""
        return self.state in ("finished", "unknown") and bool(self.protocol)

    def faces(self, metric: str) -> int:
        """Count the faces behind a metric; rates and areas share those of ``nme_ioc``."""
        return self.counts.get(metric, self.counts.get("nme_ioc", 0))

    def costs(self, name: str) -> float:
        """Give a cost by its name in the files, or by that name after :data:`POSE`; NaN where it is not known."""
        if name.startswith(POSE):
            value = self.benchmark_pose.get(name.removeprefix(POSE))
        else:
            value = self.benchmark.get(name, self.cost.get(name))
        return float(value) if isinstance(value, (int, float)) else math.nan

    def machine(self, latency: str) -> str:
        """Say what a latency was measured on, and how; latencies of two machines cannot be compared.

        Args:
            latency: :data:`LATENCY`, or the same after :data:`POSE`.
        """
        measured = self.benchmark_pose if latency.startswith(POSE) else self.benchmark
        conditions = ("device", "cpu", "threads", "torch", "memory_format", "compile")
        return ", ".join(f"{key} {value_text(measured[key])}" for key in conditions if key in measured)


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read runs, none twice.

    Args:
        paths: folders of runs, folders of sweeps (whose sub-folders 0, 1, ... are runs), or patterns of such folders.
            A folder that is neither is told by its state, :data:`NO_RUN`; the jobs of a sweep that have no folder
            are ``missing``. A sweep whose sweep.json is broken is ``unreadable``, beside the runs in its sub-folders.

    Raises:
        RunError: a path leads nowhere, or there is no run at all.
    """
    typed = [str(path) for path in paths]
    folders = {folder.resolve(): folder for path in typed for folder in _find(path)}
    jobs = {sweep: _typed(sweep) for sweep in {path.parent for path in folders}}
    runs = [read_run(folder, jobs[path.parent].get(path.name, ())) for path, folder in folders.items()]
    if all(run.state == NO_RUN for run in runs):
        raise RunError(
            f"no run in {', '.join(typed)}: the folder of a run holds {_names(_own_files(Path()))}. For all folders in "
            "a folder give a pattern, such as 'logs/train/runs/*'"
        )
    return runs


def _find(path: str) -> list[Path]:
    if Path(path).exists():
        return _jobs(Path(path))
    matches = sorted(Path(match) for match in glob.glob(path, recursive=True))  # noqa: PTH207  takes absolute patterns
    if not (folders := [match for match in matches if match.is_dir()]):
        raise RunError(f"{path}: no such folder, and as a pattern it fits none")
    return [run for folder in folders for run in _jobs(folder)]


def _jobs(folder: Path) -> list[Path]:
    """List the runs of a sweep; the folder itself if it is no sweep, or one whose list cannot be read."""
    try:
        if not folder.is_dir() or _is_run(folder):
            return [folder]
        jobs = {child.name for child in folder.iterdir() if child.is_dir() and child.name.isdecimal()}
    except OSError:
        return [folder]
    listed, fault = _sweep(folder)
    found = [folder / job for job in sorted(jobs | {str(number) for number in listed}, key=int)]
    return [*found, folder] if fault or not found else found


def _sweep(folder: Path) -> tuple[dict[int, list[str]], str]:
    """Read the jobs of a sweep, or say why they cannot be read; neither for a folder that is none."""
    try:
        return read_jobs(folder), ""
    except RunError as error:
        return {}, _one_line(str(error))


def _typed(folder: Path) -> dict[str, tuple[str, ...]]:
    """Map the number of a job to the overrides that not all of them have; empty where there is no list to be read."""
    jobs, _ = _sweep(folder)
    shared = set.intersection(*(set(overrides) for overrides in jobs.values())) if len(jobs) > 1 else set()
    return {str(job): tuple(word for word in words if word not in shared) for job, words in jobs.items()}


def _is_run(folder: Path) -> bool:
    return any(file.exists() for file in _own_files(folder))


def _own_files(folder: Path) -> list[Path]:
    """List the files that every run has once it has ended."""
    files = RunFolder(folder)
    return [files.status, files.config, files.metrics]


def _names(files: Iterable[Path]) -> str:
    return ", ".join(file.name for file in files)


def read_run(folder: Path, typed: tuple[str, ...] = ()) -> Run:
    """Read the folder of a run; what is missing or broken in it is told by ``state`` and ``reason``.

    Args:
        folder: of the run; if it is a job of a sweep that has not begun, it does not exist.
        typed: the overrides of the job.
    """
    path = folder.resolve()
    name = f"{path.parent.name}/{path.name}" if path.name.isdecimal() else path.name
    run = Run(name, folder, "unknown", "", {}, {}, {}, {}, {}, {}, {}, {}, typed)
    try:
        return _filled(run)
    except OSError as error:  # a folder that may not be entered
        return run._replace(state="unreadable", reason=_one_line(str(error)))


def _filled(run: Run) -> Run:
    folder, faults = run.folder, list[str]()
    if folder.exists() and not _is_run(folder):
        if fault := _sweep(folder)[1]:
            return run._replace(state="unreadable", reason=fault)
        return run._replace(state=NO_RUN, reason=f"holds none of {_names(_own_files(folder))}")
    for file, fields in _readers(folder).items():
        try:
            run = run._replace(**fields(file))
        except FileNotFoundError:
            continue
        except (OSError, RunError) as error:
            faults.append(f"{file.name}: {_one_line(str(error))}")
    reasons = [run.reason, *faults]
    missing = [file for file in _own_files(folder) if not file.exists()]
    if missing and run.state in ("finished", "unknown"):
        reasons.append(f"no {_names(missing)}")
    if run.protocol:
        reasons.append(_skipped(run.metrics))
    return run._replace(state="unreadable" if faults else run.state, reason="; ".join(filter(None, reasons)))


def _readers(folder: Path) -> dict[Path, Callable[[Path], dict[str, Any]]]:
    """Map the files of a run to what reads the fields of a :class:`Run` from them.

    A reader raises FileNotFoundError for a file that is not there, and OSError or RunError for one that is broken.
    """
    files = RunFolder(folder)
    return {
        files.status: _status,
        files.config: _config,
        files.metrics: _results,
        files.benchmark: lambda path: {"benchmark": _benchmark(path)},
        files.benchmark_pose: lambda path: {"benchmark_pose": _benchmark(path)},
    }


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path) if path.suffix == ".json" else read_yaml(path)
    except ValueError as error:
        raise RunError(str(error)) from error
    if not isinstance(content, dict):
        raise RunError("is no mapping")
    return content


def _status(path: Path) -> dict[str, Any]:
    status = read_status(path.parent)
    return {"state": status.state, "reason": status.reason}


def _config(path: Path) -> dict[str, Any]:
    return {"config": settings(_mapping(path))}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """Map the dotted keys of what may change a number to their values, under today's names.

    What begins with one of the run's own paths begins with the name of that path instead, so that the same data on two
    machines is the same. A list of nodes also stands as the names of their classes, so that ``[]`` and
    ``[GaussianBlur]`` differ in one key, as do the callbacks.
    """
    config = renamed_config(config)
    paths = config.get("paths")
    places = {str(paths[key]): f"<{key}>" for key in PLACES if paths.get(key)} if isinstance(paths, dict) else {}

    def walk(node: dict[str, Any], at: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            place = f"{at}{key}"
            if isinstance(value, dict):
                yield from walk(value, f"{place}.")
            elif isinstance(value, list):
                names = (class_name(item.get("_target_")) if isinstance(item, dict) else item for item in value)
                yield place, [_placed(item, places) for item in names]
                for index, item in enumerate(value):
                    if isinstance(item, dict):
                        yield from walk(item, f"{place}[{index}].")
            else:
                yield place, _placed(value, places)

    kept = result_settings(config)
    found = {key: value for key, value in walk(kept, "") if key.removeprefix("evaluate.") not in UNCOUNTED}
    if isinstance(callbacks := kept.get("callbacks", {}), dict):
        nodes = callbacks.values()
        found["callbacks"] = sorted(
            class_name(node.get("_target_") if isinstance(node, dict) else node) for node in nodes
        )
    return found


def _placed(value: Any, places: dict[str, str]) -> Any:
    for path, name in places.items():
        if isinstance(value, str) and (value == path or value.startswith(f"{path}/")):
            return name + value[len(path) :]
    return value


def _benchmark(path: Path) -> dict[str, Any]:
    content = _mapping(path)
    for name, value in content.items():
        if isinstance(value, int):
            _number(name, value)
    return content


def _number(name: str, value: int | float) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise RunError(f"{name} is a whole number of {len(str(value))} digits") from error


def _results(path: Path) -> dict[str, Any]:
    """Read the fields of a :class:`Run` that ``metrics.json`` fills."""
    content = {"cost": {}} | _mapping(path)
    for part in ("protocol", "metrics", "counts", "intervals", "cost"):
        if not isinstance(content.get(part), dict) or (part == "protocol" and not content[part]):
            raise RunError(f"has no `{part}`")
        if len(content[part]) > MOST_ENTRIES:
            raise RunError(f"`{part}` has {len(content[part]):,} entries, and {MOST_ENTRIES:,} are read at most")
    counts = content["counts"]
    for name, count in counts.items():
        if not isinstance(count, int):
            raise RunError(f"counts.{name} is {count!r}, expected a whole number")

    def number(name: str, value: Any) -> float:
        if isinstance(value, (int, float)):
            return _number(name, value)
        if value is not None:
            raise RunError(f"{name} is {value!r}, expected a number")
        return math.inf if is_infinite(name, counts) else math.nan

    def interval(name: str, ends: Any) -> tuple[float, float]:
        if not isinstance(ends, list) or len(ends) != 2:
            raise RunError(f"intervals.{name} is {ends!r}, expected two numbers")
        return number(name, ends[0]), number(name, ends[1])

    return {
        "protocol": content["protocol"],
        "metrics": {name: number(name, value) for name, value in content["metrics"].items()},
        "counts": counts,
        "intervals": {name: interval(name, ends) for name, ends in content["intervals"].items()},
        "cost": {name: number(name, value) for name, value in content["cost"].items()},
    }


def _skipped(metrics: dict[str, float]) -> str:
    skipped = metrics.get("faces_skipped", 0)
    return f"{skipped:.0f} faces could not be measured" if skipped else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def setting(run: Run, key: str) -> str:
    """Give a value of a run's configuration as text; empty where it has none."""
    value = run.config.get(key)
    return class_name(value) if key.endswith("_target_") else "" if value is None else value_text(value)


def class_name(target: Any) -> str:
    """Give the last part of the path of a class; empty for none."""
    return str(target or "").rpartition(".")[2]


def value_text(value: Any) -> str:
    """Give a value of a configuration or a protocol as text."""
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
