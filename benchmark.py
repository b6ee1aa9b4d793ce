"""Measurement of size and speed: ``python benchmark.py ckpt=RUN``, or ``model=pipnet backbone=mbv2``."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import hydra
from annotated_types import Interval
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from facelab.bounds import Device, Name, Text
from facelab.errors import ConfigError, FacelabError, RunError
from facelab.files import expand_home, replacing, write_json
from facelab.run_folder import RunFolder, owner_of
from facelab.runs.argv import key_of
from facelab.runs.build import build, check, choose_device, write_config
from facelab.runs.check import TRAIN_KEYS
from facelab.runs.checkpoint import clear_initial_weights, is_detector, load_run, parse_supplements
from facelab.runs.recording import track_run
from facelab.runs.resolvers import run_name
from facelab.runs.start import exits, start
from facelab.runs.targets import trusting

if TYPE_CHECKING:  # importing torch takes seconds
    from lightning_modules.landmark import LandmarkModule

log = logging.getLogger(__name__)

OPTIONS: dict[str, Any] = {
    "task": Text,
    "ckpt": Name | Sequence[Name] | None,
    **dict.fromkeys(("trust", "supplements"), Sequence[str]),
    "with_pose": bool,
    "device": Device,
    "threads": Annotated[int, Interval(ge=1, le=2**10)],
    "batch": Annotated[int, Interval(ge=1, le=2**14)],
    "seconds": Annotated[float, Interval(ge=0, le=3600)],
    "repeats": Annotated[int, Interval(ge=1, le=10**6)],
    "memory_format": Any,
    "compile": Any,
}
"""Types of the keys that select the measurement; the keys of train.py select the model unless ``ckpt`` is given."""
DETECTOR = ": a detector; benchmark.py measures methods that find landmarks in a crop"
"""End of the message for a model that is not measured."""
Row = dict[str, str | int | float | bool]


def benchmarked(ckpt: str | ListConfig | None, model: str) -> str:
    """Name a benchmark: by its only run or sweep, by the number of runs, or by the parts of the model."""
    if isinstance(ckpt, ListConfig) and len(ckpt) != 1:
        return f"{len(ckpt)}-runs"
    return model if ckpt is None else run_name(ckpt[0] if isinstance(ckpt, ListConfig) else ckpt)


OmegaConf.register_new_resolver("benchmarked", benchmarked, replace=True)


@hydra.main(version_base="1.3", config_path="conf", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    """Measure each run or the model, print a table, and write the results also into the folder of each run."""
    folder = Path(cfg.paths.run)
    with exits(), track_run(folder, cfg.task), trusting(cfg.trust):
        check_values(cfg)
        check(cfg, {**TRAIN_KEYS, **OPTIONS})
        rows = measure_runs(folder, cfg) if cfg.ckpt is not None else [measure_model(folder, cfg)]
        write_csv(folder / "benchmark.csv", rows)
    report(folder, rows)


def check_values(cfg: DictConfig) -> None:
    """Refuse overrides that would have no effect.

    Raises:
        ConfigError: ``ckpt`` is empty, an override changes a model although ``ckpt`` selects trained runs, or the model
            is a detector.
    """
    if cfg.ckpt is None and is_detector(cfg):
        raise ConfigError("model", f"={HydraConfig.get().runtime.choices['model']}{DETECTOR}")
    if cfg.ckpt is not None:
        if not checkpoints(cfg):
            raise ConfigError("ckpt", "=[]: a run folder, a checkpoint file or the folder of a sweep expected")
        typed = [key_of(word) for word in HydraConfig.get().overrides.task]
        if others := [key for key in typed if key not in OPTIONS and not key.startswith("paths")]:
            raise ConfigError(
                others[0],
                "=... has no effect with ckpt=..., whose runs are measured with their own configuration; without ckpt "
                "benchmark.py measures the model of the overrides",
            )


def checkpoints(cfg: DictConfig) -> list[Path]:
    """Return the paths in ``ckpt``: run folders, checkpoint files and sweeps."""
    paths = cfg.ckpt if isinstance(cfg.ckpt, ListConfig) else [cfg.ckpt]
    return [expand_home(str(path)) for path in paths]


def measure_runs(folder: Path, cfg: DictConfig) -> list[Row]:
    """Measure trained runs. All are opened before the first is measured, to report mistakes at once."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    paths: list[Path] = []
    for path in checkpoints(cfg):
        if RunFolder(path).sweep.is_file():
            paths += measurable_jobs(path, cfg)
        elif reason := refusal(path, cfg):
            raise FacelabError(reason)
        else:
            paths.append(path)
    write_config(folder, OmegaConf.create({key: resolved[key] for key in (*OPTIONS, "paths")}))
    return [measure_run(path, cfg) for path in paths]


def measurable_jobs(sweep: Path, cfg: DictConfig) -> list[Path]:
    """Return the folders of a sweep's jobs that can be measured, and log a warning for each other job.

    Raises:
        RunError: no job can be measured, or the sweep or one of its checkpoints cannot be read.
    """
    from facelab.runs.sweep import read_job_states

    paths, jobs = [], read_job_states(sweep)
    for job in jobs:
        folder = RunFolder(sweep).job(job.number)
        path, reason = folder.path, ": ".join(filter(None, (job.status.state, job.status.reason)))
        if job.status.state == "finished":
            has_checkpoint = any(folder.checkpoints.glob("*.ckpt"))
            reason = refusal(path, cfg) if has_checkpoint else "finished, without a checkpoint"
        if reason:
            log.warning("%s is skipped: %s", path, reason)
        else:
            paths.append(path)
    if not paths:
        raise RunError(f"{sweep}: none of its {len(jobs)} jobs can be measured; see the reasons above")
    return paths


def refusal(path: Path, cfg: DictConfig) -> str:
    """Return why a run cannot be measured with these options; empty if it can.

    Raises:
        FacelabError: the run cannot be opened.
    """
    run = load_run(path, cfg.paths, parse_supplements(cfg.supplements))
    return f"{path}{DETECTOR}" if is_detector(run.cfg) else no_pose(run.module, run.cfg.crop.size, cfg)


def no_pose(module: "LandmarkModule", size: int, cfg: DictConfig) -> str:
    """Return an error message if ``with_pose`` is set and the module predicts no pose; otherwise empty."""
    from facelab.profiling.cost import predicts_pose

    is_missing = cfg.with_pose and not predicts_pose(module, size)
    return "with_pose=true: this model predicts no pose; see pose= and model.angle_weight=" if is_missing else ""


def measure_run(path: Path, cfg: DictConfig) -> Row:
    """Measure a trained run and write the results into its folder, if its checkpoint is in a run's folder.

    If that folder is read-only, the results are in the table of the benchmark only.
    """
    run = load_run(path, cfg.paths, parse_supplements(cfg.supplements))
    row = measure(run.module, run.cfg.crop.size, cfg)
    owner = owner_of(run.checkpoint)
    if owner:
        try:
            write_row(owner.path, row)
        except OSError as error:
            log.warning("%s: %s; the results are only in benchmark.csv", error.filename, error.strerror)
    source = (owner.path if owner else run.checkpoint).resolve()
    return {"name": RunFolder(source).name, **row}


def measure_model(folder: Path, cfg: DictConfig) -> Row:
    """Measure the model that train.py would train, and write the results and ``config.yaml`` into the folder.

    Raises:
        FacelabError: ``with_pose`` is set and the model predicts no pose.
    """
    cfg = OmegaConf.create(clear_initial_weights(OmegaConf.to_container(cfg, resolve=False)))
    module = build(cfg, "model")
    if reason := no_pose(module, cfg.crop.size, cfg):
        raise FacelabError(reason)
    write_config(folder, cfg)
    row = measure(module, cfg.crop.size, cfg)
    write_row(folder, row)
    return {"name": cfg.paths.name, **row}


def measure(module: "LandmarkModule", size: int, cfg: DictConfig) -> Row:
    """Measure the size and the speed of a module, and add a description of the machine.

    Raises:
        ConfigError: the device does not exist, or the method does not accept crops of this size.
    """
    import torch

    from facelab.profiling.compile import set_format_and_compile
    from facelab.profiling.cost import cost, latency, machine

    device = choose_device(cfg.device)
    torch.compiler.reset()  # torch compiles a limited number of modules of a class
    set_format_and_compile(module.to(device), cfg.memory_format, cfg.compile)
    pose = cfg.with_pose
    one, many = (
        latency(module, size, batch, cfg.seconds, cfg.repeats, cfg.threads, pose=pose) for batch in (1, cfg.batch)
    )
    return {
        **cost(module, size, pose=pose),
        "latency_p50_ms": one.p50,
        "latency_p95_ms": one.p95,
        f"throughput_{cfg.batch}": 1000 * cfg.batch / many.p50,
        "threads": cfg.threads,
        **machine(module.device),
        "size": size,
        "pose": pose,
        "memory_format": cfg.memory_format,
        "compile": cfg.compile,
        "calls": one.calls,
    }


def write_row(folder: Path, row: Row) -> None:
    """Write the results into the folder of a run; results with and without the head pose have separate files."""
    files = RunFolder(folder)
    write_json(files.benchmark_pose if row["pose"] else files.benchmark, row)


def write_csv(path: Path, rows: list[Row]) -> None:
    """Write one line per run or model, with unrounded numbers."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def report(folder: Path, rows: list[Row]) -> None:
    """Print the table with the description of the machine, and the path of the CSV file."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    first: dict[str, Any] = rows[0]
    batch = next(key for key in first if key.startswith("throughput_")).removeprefix("throughput_")
    more = ", compiled" * first["compile"] + ", with pose" * first["pose"]
    title = "{device}, {cpu}, threads={threads}, torch {torch}, {memory_format}".format(**first) + more
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", overflow="fold")
    for heading in ("crop\npx", "params\nM", "MACs\nM", "FLOPs\nM", "p50\nms", "p95\nms", f"faces/s\nby {batch}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        numbers: dict[str, Any] = row
        size = (f"{numbers[key] / 1e6:,.{places}f}" for key, places in (("params", 2), ("macs", 1), ("flops", 1)))
        speed = (f"{numbers[key]:,.2f}" for key in ("latency_p50_ms", "latency_p95_ms", f"throughput_{batch}"))
        table.add_row(numbers["name"], str(numbers["size"]), *size, *speed)
    console = Console()
    console.print(table)
    console.print(
        "one face, without flip test; a MAC is one multiplication and one addition, so two FLOPs", soft_wrap=True
    )
    console.print(f"benchmark.csv in {folder}", soft_wrap=True)


if __name__ == "__main__":
    start(opens="ckpt")
    main()
