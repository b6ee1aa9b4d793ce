"""Run folders as train.py writes them, and the output of compare.py for them."""

import io
import json
import math
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, settings
from rich.console import Console

from compare import show
from facelab.comparison.group import compare
from facelab.comparison.page import write_page
from facelab.comparison.read import Run
from facelab.comparison.write import write_csv, write_markdown
from facelab.files import write_json
from facelab.metrics.detection_curves import Curve, write_curves
from facelab.metrics.record import Metric, as_json

PROTOCOL = {
    "dataset": "wflw98",
    "split": "test",
    "layout": "wflw98",
    "faces": 100,
    "truth": "0123456789abcdef",
    "box": "points",
    "flip_test": False,
    "pose": "estimated",
    "evaluator": 1,
}


ERROR = Metric(math.nan, math.nan, math.nan, 100, 0, "fraction", "lower")
"""Record of an error without value and interval."""
METRICS = {
    "nme_ioc": ERROR._replace(value=0.05),
    "nme_box": ERROR._replace(value=0.04),
    "nme_box_yaw_0_30": ERROR._replace(value=0.03, faces=60, whole="nme_box", breakdown="yaw", part="0_30"),
    "fr08_ioc": ERROR._replace(value=0.1),
    "auc08_ioc": ERROR._replace(value=0.5, better="higher"),
    "nme_ipd": ERROR._replace(value=0.07),
    "faces": ERROR._replace(value=100.0, unit="count", better="none"),
    "faces_skipped": ERROR._replace(value=0.0, unit="count", better="none"),
}


CONFIG: dict[str, Any] = {
    "seed": 1,
    "trainer": {"_target_": "lightning.Trainer", "max_epochs": 60},
    "data": {"_target_": "facelab.annotations.wflw98.WFLW", "name": "wflw98", "root": "/home/a/wflw98"},
    "crop": {"_target_": "facelab.faces.crop.Crop", "size": 256},
    "datamodule": {"_target_": "datamodules.pipnet.PIPNetDataModule", "seed": 1, "batch_size": 16},
    "augment": {"_target_": "datamodules.augmentation.Augmentation", "pixels": []},
    "backbone": {"_target_": "facelab.networks.backbone.TimmBackbone", "name": "resnet18", "weights": None},
    "scheduler": {"_target_": "lightning_modules.schedule.FractionalMultiStepLR", "max_epochs": 60},
    "model": {
        "_target_": "lightning_modules.pipnet.PIPNet",
        "backbone": {"_target_": "facelab.networks.backbone.TimmBackbone", "name": "resnet18", "weights": None},
    },
    "logger": {"wandb": {"name": "a"}},
    "paths": {"data": "/home/a", "cache": "data", "run": "/home/a/run", "name": "a"},
}


def with_values(config: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return a copy of a configuration with other values; `model__backbone__name` sets model.backbone.name."""
    copy = json.loads(json.dumps(config))
    for key, value in values.items():
        *nodes, last = key.split("__")
        node = copy
        for name in nodes:
            node = node[name]
        node[last] = value
    return copy


def write_run(
    folder: Path,
    *,
    config: dict[str, Any] = CONFIG,
    status: dict[str, Any] | None = None,
    protocol: dict[str, Any] | None = None,
    metrics: Mapping[str, float | Metric] | None = None,
    measured: bool = True,
) -> Path:
    """Write the folder of a run as train.py does; of a metric that is a number, only the value changes."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "status.json").write_text(json.dumps(status or {"state": "finished"}))
    changed = {
        name: change if isinstance(change, Metric) else METRICS.get(name, ERROR)._replace(value=change)
        for name, change in (metrics or {}).items()
    }
    results = {
        "name": folder.name,
        "protocol": PROTOCOL | (protocol or {}),
        "metrics": {name: as_json(metric) for name, metric in (METRICS | changed).items()},
    }
    if measured:
        write_json(folder / "metrics.json", results)
    return folder


def run_compare(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run compare.py in this process, where torch is already imported."""
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "compare.py"), run_name="__main__")


def write_faces(folder: Path, errors: Sequence[float], photos: Sequence[str], size: float = 100) -> None:
    """Write faces.csv with these errors as nme_ioc and nme_box."""
    columns = "face_id,photo,nme_ioc,nme_ipd,nme_box,nme_diag,error_px,ioc,ipd,box,diag,yaw,pitch,roll,points"
    rows = [
        f"{i},{photo},{error},,{error},,,,,{size},,,,,98"
        for i, (error, photo) in enumerate(zip(errors, photos, strict=True))
    ]
    (folder / "faces.csv").write_text("\n".join([columns, *rows]) + "\n")


def mean_of(e: np.ndarray) -> Metric:
    """Return the record of the mean of these errors, without an interval."""
    return ERROR._replace(value=float(e.mean()) if len(e) else math.nan, faces=len(e))


WFLW = PROTOCOL | {"faces": 2500, "box": "given"}


TAGS = ("pose", "expression", "occlusion")


def write_results(folder: Path, error: float, seed: int, *, faces: int, macs: float = 0, latency: float = 0) -> Path:
    """Write the results of a test into a run folder: faces, curves and metrics that agree with each other."""
    draws = np.random.default_rng(0), np.random.default_rng(seed)
    difficulty = np.exp(0.35 * draws[0].standard_normal(faces))  # the same faces are hard for every run
    box = error / 100 * difficulty * np.exp(0.15 * draws[1].standard_normal(faces))
    ioc, size = 1.7 * box, draws[0].uniform(30, 200, faces)
    yaw, tags = 35 * draws[0].standard_normal(faces), draws[0].random((faces, len(TAGS))) < 0.2
    names = [f"{face // 2:05}.jpg" for face in range(faces)]
    columns = "face_id,photo,nme_ioc,nme_ipd,nme_box,nme_diag,error_px,ioc,ipd,box,diag,yaw,pitch,roll,points"
    lines = [columns + "".join(f",tag_{tag}" for tag in TAGS)]
    for i in range(faces):
        numbers = [ioc[i], ioc[i], box[i], box[i], box[i] * size[i], size[i], size[i], size[i], size[i], yaw[i], 0, 0]
        lines.append(",".join([str(i), names[i], *(f"{n:.6g}" for n in numbers), "98", *map(str, tags[i].astype(int))]))
    (folder / "faces.csv").write_text("\n".join(lines) + "\n")

    metrics = {"nme_ioc": mean_of(ioc), "nme_ioc_crop": mean_of(0.86 * ioc), "nme_box": mean_of(box)}
    for name in metrics:
        value = metrics[name].value
        metrics[name] = metrics[name]._replace(low=value * 0.985, high=value * 1.015)
    edges = {"0_30": (0, 30), "30_60": (30, 60), "60_90": (60, 999)}
    parts = {("nme_box", "yaw", name): box[(abs(yaw) > a) & (abs(yaw) <= b)] for name, (a, b) in edges.items()}
    parts |= {("nme_ioc", "tag", tag): ioc[tags[:, i]] for i, tag in enumerate(TAGS)}
    regions = {"jaw": 1.4, "nose": 0.8, "left_eye": 0.7}
    parts |= {("nme_ioc", "region", name): ioc * factor for name, factor in regions.items()}
    parts |= {("nme_box", "size", "32_64"): box[size < 64]}
    parts |= {("nme_box", "size", "64_128"): box[(size >= 64) & (size < 128)]}
    for (whole, breakdown, part), e in parts.items():
        record = mean_of(e)._replace(whole=whole, breakdown=breakdown, part=part)
        metrics[f"{whole}_{breakdown}_{part}"] = record
    metrics["fr08_ioc"] = mean_of(1.0 * (ioc > 0.08))
    metrics["auc08_ioc"] = mean_of(np.maximum(0, 1 - ioc / 0.08))._replace(better="higher")
    metrics |= {name: METRICS[name] for name in ("faces", "faces_skipped")}
    metrics["faces"] = metrics["faces"]._replace(value=float(faces))
    results: dict[str, Any] = {
        "protocol": WFLW | {"faces": faces},
        "metrics": {name: as_json(metric) for name, metric in metrics.items()},
    }
    if macs:
        results["cost"] = {"params": int(macs / 200), "macs": int(macs), "flops": int(2 * macs)}
    write_json(folder / "metrics.json", results)
    if latency:
        machine = {"cpu": "EPYC", "device": "cpu", "threads": 1, "torch": "2.15.0"}
        (folder / "benchmark.json").write_text(json.dumps(machine | {"latency_p50_ms": latency, "throughput_32": 40.0}))
    noise = np.random.default_rng(seed)
    rows = ["epoch,step,lr,train/loss,val/nme_box"]
    for epoch in range(30):
        for batch in range(5):
            loss = 1.2 * math.exp(-epoch / 9) + 0.3 * error + 0.05 * noise.random()
            rows.append(f"{epoch},{epoch * 100 + batch * 20 + 19},,{loss:.6f},")
        value = error / 100 * (1 + 3 * math.exp(-epoch / 4)) * (1 + 0.04 * noise.random())
        rows.append(f"{epoch},{epoch * 100 + 99},,,{value:.6f}")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_detector(folder: Path, quality: float, *, curves: tuple[str, ...] = ("ap50", "wider_easy")) -> Path:
    """Write the folder of a detector with curves that end at this recall, and metrics that agree with them."""
    recall = np.linspace(0, 1, 5001)[1:] * quality
    precision = 1 - (recall / quality) ** 8 / 2
    false = np.geomspace(0.004, 20, len(recall))
    curve = Curve(1 - recall, recall, precision, precision, false)
    metric = ERROR._replace(better="higher")
    metrics = {name: metric._replace(value=float(np.trapezoid(precision, recall))) for name in ("ap50", *curves)}
    metrics |= {f"recall_fppi_{name}": metric for name in ("01", "1")}
    for name, most in (("01", 0.1), ("1", 1)):
        metrics[f"recall_fppi_{name}"] = metric._replace(value=recall[false <= most][-1], low=0.2, high=0.99)
    for part, value in (("0_16", 0.0), ("128_up", 1.0)):
        metrics[f"ap50_size_{part}"] = metric._replace(value=value, whole="ap50", breakdown="size", part=part)
    config = with_values(CONFIG, crop__size=int(1000 * quality))
    write_run(folder, config=config, measured=False)
    protocol = {"dataset": "wider_face", "split": "test", "photos": 9, "faces": 100, "scale": "original"}
    content = {"protocol": protocol, "metrics": {name: as_json(each) for name, each in metrics.items()}}
    write_json(folder / "metrics.json", content)
    if curves:
        write_curves(dict.fromkeys(curves, curve), folder / "detection_curves.csv")
    return folder


BACKBONES = {"mobilenetv2_100": (1.9, 0.58e9, 21.0), "resnet18": (1.8, 2.44e9, 38.0), "resnet50": (1.7, 5.6e9, 91.0)}


def grid_of_runs(folder: Path, *, seeds: int, faces: int, rates: tuple[float, ...] = (1e-4, 5e-4)) -> Path:
    """Write a sweep over backbones, learning rates and seeds, with one failed job and one that never started."""
    cells = {}
    for name, (error, macs, latency) in BACKBONES.items():
        for rate in rates:
            for seed in range(1, seeds + 1):
                job = str(len(cells))
                cells[job] = [f"backbone={name}", f"optimizer.lr={rate}", f"seed={seed}"]
                config = with_values(CONFIG, seed=seed, datamodule__seed=seed, backbone__name=name, monitor={})
                config |= {"optimizer": {"lr": rate}, "monitor": {"name": "val/nme_box", "mode": "min"}}
                config["model"]["backbone"]["name"] = name
                write_run(folder / job, config=config, measured=False)
                wobble = 0.03 * math.sin(7 * seed + len(name)) + 0.2 * (rate < 3e-4) + 5 * rate
                write_results(folder / job, error + wobble, int(job) + 1, faces=faces, macs=macs, latency=latency)
    failed = {"state": "failed", "reason": "OutOfMemoryError: CUDA out of memory"}
    write_run(folder / str(len(cells)), status=failed, measured=False)
    cells |= {str(len(cells) + i): [f"backbone=hrnet{18 + i}", "seed=1"] for i in range(2)}
    (folder / "sweep.json").write_text(json.dumps({"stamp": folder.name, "overrides": [], "cells": cells}))
    return folder


QUICK = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
    database=None,
)


def all_outputs(runs: list[Run], folder: Path) -> dict[str, str]:
    """Return the text that compare.py prints and writes for runs, by file name."""
    folder.mkdir(exist_ok=True)
    tables = compare(runs, None)
    console = Console(file=io.StringIO(), width=10_000, highlight=False, markup=False, emoji=False)
    show(console, runs, tables, each=True)
    write_csv(folder / "a.csv", runs, tables)
    write_markdown(folder / "a.md", runs, tables, each=True)
    write_page(folder / "a.html", runs, tables, 6)
    names = {"terminal": console.file.getvalue()}  # type: ignore[attr-defined]
    return names | {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}
