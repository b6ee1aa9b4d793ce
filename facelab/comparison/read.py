"""Reading of run folders for a comparison."""

import glob
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from facelab.errors import RunError
from facelab.files import read_json, read_yaml, resolve_links
from facelab.metrics.record import Metric, read_metrics, read_number
from facelab.renames import renamed_config
from facelab.run_folder import STAMPED, RunFolder, read_jobs, read_status, result_settings

PATHS = ("cache", "data", "run")
"""Keys of ``paths`` that are folders."""
NO_RUN = "no run"
"""State of a folder that contains none of the files of a run."""
LATENCY = "latency_p50_ms"
"""Name of the median latency, a cost that depends on the machine."""
POSE = "pose_"
"""Prefix of the costs of predicting landmarks and head pose together."""
STAMP = re.compile(f"{STAMPED}_")
"""Date and time at the beginning of a run's name."""
UNCOUNTED = frozenset(
    {
        *("test", "num_workers", "datamodule.num_workers"),
        *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps"),
    }
)
"""Settings without effect on a metric, with and without the prefix ``evaluate.``: they change the speed or the display.

The number of workers belongs to them since all random draws of training are functions of seed, epoch and row.
"""
MAX_ENTRIES = 1000
"""Maximum number of entries in a section of metrics.json; a test writes about a hundred."""


NOT_COMPARED = frozenset({"box_scale"})
"""Entries of a protocol that earlier versions wrote: the margin of a crop around its box belongs to the method."""


class Run(NamedTuple):
    """The results, the configuration and the state of a run."""

    name: str  # name of the folder; for a job of a sweep preceded by the name of the sweep's folder
    folder: Path
    state: str  # as from `read_status`, or unreadable (a broken file), or NO_RUN (not the folder of a run)
    reason: str  # why metrics are missing or exclude some faces; empty if nothing is missing
    config: dict[str, Any]  # dotted key to value, as from `settings`; empty without config.yaml
    protocol: dict[str, Any]  # empty without metrics
    metrics: dict[str, Metric]
    cost: dict[str, float]  # cost of one face: params, macs, flops; empty if not counted
    benchmark: dict[str, Any]  # content of benchmark.json; empty if not measured
    benchmark_pose: dict[str, Any]  # content of benchmark_pose.json; empty if not measured
    typed: tuple[str, ...]  # overrides of a job from sweep.json, without those that all jobs share

    @property
    def ranked(self) -> bool:
        """Return whether the run has ended and has metrics."""
        return self.state in ("finished", "unknown") and bool(self.protocol)

    def costs(self, name: str) -> float:
        """Return a cost by its name in the files, or by :data:`POSE` and that name; NaN if it was not measured."""
        if name.startswith(POSE):
            value = self.benchmark_pose.get(name.removeprefix(POSE))
        else:
            value = self.benchmark.get(name, self.cost.get(name))
        return float(value) if isinstance(value, (int, float)) else math.nan

    def machine(self, latency: str) -> str:
        """Describe the machine and the settings of a latency; latencies of two machines cannot be compared.

        Args:
            latency: :data:`LATENCY`, or :data:`POSE` and :data:`LATENCY`.
        """
        measured = self.benchmark_pose if latency.startswith(POSE) else self.benchmark
        conditions = ("device", "cpu", "threads", "torch", "memory_format", "compile")
        return ", ".join(f"{key} {value_text(measured[key])}" for key in conditions if key in measured)


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read runs, each once.

    Args:
        paths: folders of runs, folders of sweeps (whose subfolders 0, 1, ... are runs), or patterns of such folders.
            Another folder has the state :data:`NO_RUN`. Jobs of a sweep without a folder are ``missing``. A sweep with
            a broken sweep.json is ``unreadable``, in addition to the runs in its subfolders.

    Raises:
        RunError: a path does not exist, or there is no run.
    """
    typed = [str(path) for path in paths]
    folders = {resolve_links(folder): folder for path in typed for folder in _find(path)}
    jobs = {sweep: _overrides_of_jobs(sweep) for sweep in {path.parent for path in folders}}
    runs = [read_run(folder, jobs[path.parent].get(path.name, ())) for path, folder in folders.items()]
    if all(run.state == NO_RUN for run in runs):
        raise RunError(
            f"no run in {', '.join(typed)}: the folder of a run contains {_names(_main_files(Path()))}. For all "
            "subfolders of a folder use a pattern such as 'logs/train/runs/*'"
        )
    return runs


def _find(path: str) -> list[Path]:
    """List the runs that a typed path or pattern means."""
    if Path(path).exists():
        return _jobs(Path(path))
    matches = sorted(Path(match) for match in glob.glob(path, recursive=True))  # noqa: PTH207  accepts absolute patterns
    if not (folders := [match for match in matches if match.is_dir()]):
        raise RunError(f"{path}: there is no such folder, and no folder matches it as a pattern")
    return [run for folder in folders for run in _jobs(folder)]


def _jobs(folder: Path) -> list[Path]:
    """List the runs of a sweep, and the folder itself if it is not a sweep or its sweep.json cannot be read."""
    try:
        if not folder.is_dir() or _is_run(folder):
            return [folder]
        jobs = {child.name for child in folder.iterdir() if child.is_dir() and child.name.isdecimal()}
    except OSError:
        return [folder]
    listed, fault = _sweep(folder)
    folders = [folder / job for job in sorted(jobs | {str(number) for number in listed}, key=int)]
    return [*folders, folder] if fault or not folders else folders


def _sweep(folder: Path) -> tuple[dict[int, list[str]], str]:
    """Read the jobs of a sweep, or return why they cannot be read; both are empty for a folder that is not a sweep."""
    try:
        return read_jobs(folder), ""
    except RunError as error:
        return {}, _one_line(str(error))


def _overrides_of_jobs(folder: Path) -> dict[str, tuple[str, ...]]:
    """Map the number of a job to its overrides without those that all jobs share; empty without a readable list."""
    jobs, _ = _sweep(folder)
    shared = set.intersection(*(set(overrides) for overrides in jobs.values())) if len(jobs) > 1 else set()
    return {str(job): tuple(word for word in words if word not in shared) for job, words in jobs.items()}


def _is_run(folder: Path) -> bool:
    """Return whether a folder contains a main file of a run."""
    return any(file.exists() for file in _main_files(folder))


def _main_files(folder: Path) -> list[Path]:
    """Return the paths of status, configuration and metrics; a finished run has all three."""
    files = RunFolder(folder)
    return [files.status, files.config, files.metrics]


def _names(files: Iterable[Path]) -> str:
    """Join the names of files for a message."""
    return ", ".join(file.name for file in files)


def read_run(folder: Path, typed: tuple[str, ...] = ()) -> Run:
    """Read the folder of a run; ``state`` and ``reason`` describe missing and broken files.

    Args:
        folder: folder of the run; it does not exist if the run is a job of a sweep that has not started.
        typed: overrides of the job.
    """
    run = Run(RunFolder(resolve_links(folder)).name, folder, "unknown", "", {}, {}, {}, {}, {}, {}, typed)
    try:
        return _filled(run)
    except OSError as error:  # without permission to enter the folder
        return run._replace(state="unreadable", reason=_one_line(str(error)))


def _filled(run: Run) -> Run:
    """Read all files of a run; a broken file makes the run unreadable."""
    folder, faults = run.folder, list[str]()
    if folder.exists() and not _is_run(folder):
        if fault := _sweep(folder)[1]:
            return run._replace(state="unreadable", reason=fault)
        return run._replace(state=NO_RUN, reason=f"contains none of {_names(_main_files(folder))}")
    for file, fields in _readers(folder).items():
        try:
            run = run._replace(**fields(file))
        except FileNotFoundError:
            continue
        except (OSError, RunError) as error:
            faults.append(f"{file.name}: {_one_line(str(error))}")
    reasons = [run.reason, *faults]
    missing = [file for file in _main_files(folder) if not file.exists()]
    if missing and run.state in ("finished", "unknown"):
        reasons.append(f"no {_names(missing)}")
    if run.protocol:
        reasons.append(_skipped(run.metrics))
    return run._replace(state="unreadable" if faults else run.state, reason="; ".join(filter(None, reasons)))


def _readers(folder: Path) -> dict[Path, Callable[[Path], dict[str, Any]]]:
    """Map the files of a run to functions that read fields of a :class:`Run` from them.

    A function raises FileNotFoundError if the file does not exist, and OSError or RunError if it is broken.
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
    """Read a JSON or YAML file that contains a mapping."""
    try:
        content = read_json(path) if path.suffix == ".json" else read_yaml(path)
    except ValueError as error:
        raise RunError(str(error)) from error
    if not isinstance(content, dict):
        raise RunError("is not a mapping")
    return content


def _status(path: Path) -> dict[str, Any]:
    """Read the fields of a :class:`Run` from ``status.json``."""
    status = read_status(path.parent)
    return {"state": status.state, "reason": status.reason}


def _config(path: Path) -> dict[str, Any]:
    """Read the fields of a :class:`Run` from ``config.yaml``."""
    return {"config": settings(_mapping(path))}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """Map the dotted keys of all settings that may change a metric to their values, under the current names.

    A path of the run at the beginning of a value is replaced by the name of that path, so that the same data on two
    machines has equal settings. A list of nodes has an additional entry with the names of their classes, so that ``[]``
    and ``[GaussianBlur]`` differ in one key. The callbacks have such an entry too.
    """
    config = renamed_config(config)
    paths = config.get("paths")
    names = {str(paths[key]): f"<{key}>" for key in PATHS if paths.get(key)} if isinstance(paths, dict) else {}

    def walk(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        """Yield the dotted key and the value of each setting in a node."""
        for name, value in node.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict):
                yield from walk(value, f"{key}.")
            elif isinstance(value, list):
                items = (class_name(item.get("_target_")) if isinstance(item, dict) else item for item in value)
                yield key, [_without_path(item, names) for item in items]
                for index, item in enumerate(value):
                    if isinstance(item, dict):
                        yield from walk(item, f"{key}[{index}].")
            else:
                yield key, _without_path(value, names)

    kept = result_settings(config)
    flat = {key: value for key, value in walk(kept, "") if key.removeprefix("evaluate.") not in UNCOUNTED}
    if isinstance(callbacks := kept.get("callbacks", {}), dict):
        nodes = callbacks.values()
        flat["callbacks"] = sorted(
            class_name(node.get("_target_") if isinstance(node, dict) else node) for node in nodes
        )
    return flat


def _without_path(value: Any, names: dict[str, str]) -> Any:
    """Replace a path of the run at the beginning of a value by its name."""
    for path, name in names.items():
        if isinstance(value, str) and (value == path or value.startswith(f"{path}/")):
            return name + value[len(path) :]
    return value


def _benchmark(path: Path) -> dict[str, Any]:
    """Read a table of costs; refuse an integer that is too large for a float."""
    content = _mapping(path)
    _numbers({name: value for name, value in content.items() if type(value) is int})
    return content


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Convert the values of a mapping to floats."""
    try:
        return {name: read_number(name, value) for name, value in values.items()}
    except ValueError as error:
        raise RunError(str(error)) from error


def _results(path: Path) -> dict[str, Any]:
    """Read the fields of a :class:`Run` from ``metrics.json``."""
    content = {"cost": {}} | _mapping(path)
    for part in ("protocol", "metrics", "cost"):
        if not isinstance(content.get(part), dict) or (part == "protocol" and not content[part]):
            raise RunError(f"has no `{part}`")
        if len(content[part]) > MAX_ENTRIES:
            raise RunError(f"`{part}` has {len(content[part]):,} entries, expected at most {MAX_ENTRIES:,}")
    try:
        metrics = read_metrics(content)
    except ValueError as error:
        raise RunError(str(error)) from error
    protocol = {key: value for key, value in content["protocol"].items() if key not in NOT_COMPARED}
    return {"protocol": protocol, "metrics": metrics, "cost": _numbers(content["cost"])}


def _skipped(metrics: dict[str, Metric]) -> str:
    """Return a note on faces or photos that could not be measured; empty if there are none."""
    counts = {noun: metrics[f"{noun}_skipped"] for noun in ("faces", "photos") if f"{noun}_skipped" in metrics}
    notes = (f"{count.text(count.value)} {noun} could not be measured" for noun, count in counts.items() if count.value)
    return ", ".join(notes)


def _one_line(text: str) -> str:
    """Replace newlines and repeated spaces by one space."""
    return " ".join(text.split())


def setting(run: Run, key: str) -> str:
    """Return a value of a run's configuration as text; empty if the key is missing or null."""
    value = run.config.get(key)
    return class_name(value) if key.endswith("_target_") else "" if value is None else value_text(value)


def class_name(target: Any) -> str:
    """Return the last part of the dotted path of a class; empty for None."""
    return str(target or "").rpartition(".")[2]


def value_text(value: Any) -> str:
    """Format a value of a configuration or a protocol."""
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
