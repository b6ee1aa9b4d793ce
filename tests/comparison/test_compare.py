import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hydra.core.override_parser.overrides_parser import OverridesParser
from run_folders import CONFIG, ERROR, METRICS, PROTOCOL, run_compare, with_values, write_faces, write_run

from compare import parse
from facelab import run_folder
from facelab.comparison import pairs, published
from facelab.comparison.grid import build_cells, describe, disagreement, grid_without_numbers, remarks
from facelab.comparison.group import MAIN, MODEL, Row, Table, best, compare, paper_value, row_of, rows_of
from facelab.comparison.page import labels_of
from facelab.comparison.read import Run, read_run, read_runs, setting, settings
from facelab.comparison.write import write_csv
from facelab.errors import RunError
from facelab.metrics.landmarks import Difference
from facelab.metrics.record import as_json

OLD: dict[str, Any] = {"counts": {"nme_box": 100}, "intervals": {}, "metrics": {"nme_box": 0.04}}
"""Entries of a metrics.json of an earlier version, which tell it from today's."""


def run(name: str, state: str = "finished", **metrics: tuple[float, float, float]) -> Run:
    """Return a run whose metrics have these values and intervals."""
    records = {
        key: METRICS.get(key, ERROR)._replace(value=value, low=low, high=high)
        for key, (value, low, high) in metrics.items()
    }
    records["faces"] = METRICS["faces"]
    return Run(name, Path(name), state, "", {}, dict(PROTOCOL), records, {}, {}, {}, ())


def row(name: str, state: str = "finished", **metrics: tuple[float, float, float]) -> Row:
    """Return the row of a single such run."""
    return row_of([run(name, state, **metrics)])


def seeds(name: str, *values: float, **config: Any) -> list[Run]:
    """Return runs of seeds 1, 2, ... with these errors, each with an interval over faces of +-0.001."""
    return [
        run(f"{name}-s{seed}", nme_box=(value, value - 0.001, value + 0.001))._replace(
            config={"seed": seed, "datamodule.seed": seed, "name": name} | config
        )
        for seed, value in enumerate(values, start=1)
    ]


def settings_of(*configs: dict[str, Any]) -> Table:
    """Return the table of runs with these configurations."""
    runs = [run(str(i))._replace(config=settings(config)) for i, config in enumerate(configs)]
    return compare(runs, None)[0]


def run_script(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "compare.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


# Reading


def test_read_run_reads_every_entry_of_metrics_json(tmp_path: Path) -> None:
    """Would catch an entry of metrics.json that is renamed by its writer, so that its column silently vanishes."""
    from facelab.faces.layouts import IBUG68
    from facelab.files import write_json
    from facelab.metrics import landmarks
    from facelab.metrics.face_table import FaceTable

    table = FaceTable(
        layout=IBUG68,
        tag_names=(),
        face_id=np.arange(3),
        error=np.full((3, 68), 2.0),
        valid=np.ones((3, 68), bool),
        **dict.fromkeys(("ioc", "ipd", "box", "diag", "ioc_crop"), np.full(3, 50.0)),
        error_crop=np.full(3, 2.0),
        pose=np.array([[0, 0, 0], [45, 0, 0], [80, 0, 0]], float),
        tags=np.zeros((3, 0), bool),
        pose_error=np.ones((3, 3)),
    )
    records = {name: metric.record(10, seed=0) for name, metric in landmarks.definitions(table).items()}
    folder = write_run(tmp_path / "a", measured=False)
    results = {
        "protocol": PROTOCOL | {"faces": 3},
        "metrics": {name: as_json(record) for name, record in records.items()},
    }
    write_json(folder / "metrics.json", results)
    read = read_run(folder)
    assert read.ranked and read.reason == ""
    assert compare([read], None)[0].metrics == list(MAIN)
    assert {name: repr(record) for name, record in read.metrics.items()} == {
        name: repr(record) for name, record in records.items()
    }
    assert read.metrics["nme_box"].value == pytest.approx(0.04)
    assert [read.metrics[name].faces for name in ("nme_box", "fr08_ioc", "nme_box_yaw_30_60")] == [3, 3, 1]


def test_read_run_distinguishes_infinity_from_no_face(tmp_path: Path) -> None:
    """Would catch an infinite error read as not measured, and an empty bucket read as an infinite error."""
    read = read_run(write_run(tmp_path / "a", metrics={"nme_box": math.inf, "nme_ioc": math.nan}))
    assert read.metrics["nme_box"].value == math.inf and math.isnan(read.metrics["nme_ioc"].value)


def test_read_runs_accepts_folders_sweeps_and_patterns(tmp_path: Path) -> None:
    """Would catch job 10 sorted before job 2, a run read twice, a pattern without matches, or a dropped empty job."""
    for name in ("sweep/10", "sweep/2", "runs/a", "runs/b"):
        write_run(tmp_path / name)
    (tmp_path / "sweep" / "11").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").touch()
    runs = read_runs([tmp_path / "sweep", tmp_path / "sweep" / "2", f"{tmp_path}/runs/*", f"{tmp_path}/s*"])
    assert [each.name for each in runs] == ["sweep/2", "sweep/10", "sweep/11", "a", "b"]
    assert [each.state for each in runs] == ["finished", "finished", "no run", "finished", "finished"]


def test_read_runs_lists_jobs_without_a_folder_as_missing(tmp_path: Path) -> None:
    """Would catch a grid that looks complete although its last jobs never started, or that hides their overrides."""
    write_run(tmp_path / "sweep" / "0")
    write_run(tmp_path / "sweep" / "2", status={"state": "failed", "reason": "?"}, measured=False)
    jobs = {"0": ["seed=1"], "2": ["seed=3"], "10": ["backbone=mbv2", "seed=4"], "9": ["seed=2"]}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"stamp": "sweep", "overrides": [], "cells": jobs}))
    runs = read_runs([tmp_path / "sweep"])
    assert [(each.name, each.state) for each in runs] == [
        *[("sweep/0", "finished"), ("sweep/2", "failed"), ("sweep/9", "missing"), ("sweep/10", "missing")]
    ]
    rows = [[cell.text for cell in row] for row in grid_without_numbers(runs)]
    assert rows[3] == ["sweep/10", "backbone=mbv2 seed=4", "missing", "not started"]
    assert read_runs([tmp_path / "sweep" / "2"])[0].typed == ("seed=3",)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "sweep.json").write_text(json.dumps({"cells": {"0": []}}))
    assert [each.state for each in read_runs([tmp_path / "new"])] == ["missing"]
    (tmp_path / "new" / "sweep.json").write_text("{")
    (broken,) = read_runs([tmp_path / "new"])
    assert broken.state == "unreadable" and "sweep.json cannot be read" in broken.reason


@pytest.mark.parametrize("path", ["nowhere", "run*", "."])
def test_read_runs_refuses_a_path_without_runs(tmp_path: Path, path: str) -> None:
    """Would catch a typing mistake that gives an empty table, which looks like a result."""
    (tmp_path / "notes").mkdir()
    with pytest.raises(RunError, match=str(tmp_path)):
        read_runs([tmp_path / path])


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ('{"name": "a", "prot', "Unterminated string"),
        ("[1, 2]", "is not a mapping"),
        ({"protocol": {}}, "has no `protocol`"),
        ({"metrics": {"nme_box": [1]}}, "metrics.nme_box is [1], expected a record"),
        ({"metrics": {"nme_box": {}}}, "metrics.nme_box has no `better`"),
        (OLD | {"intervals": None}, "has no `intervals`"),
        (OLD | {"metrics": {"nme_box": [1]}}, "metrics.nme_box is [1], expected a number"),
        (OLD | {"counts": {"nme_box": "many"}}, "counts.nme_box is 'many', expected a whole number"),
        (OLD | {"intervals": {"nme_box": 1}}, "intervals.nme_box is 1, expected two numbers"),
        (b"\xff\xfe", "codec"),
    ],
)
def test_read_run_names_a_broken_metrics_file(tmp_path: Path, results: Any, reason: str) -> None:
    """Would catch a broken metrics.json that ends the whole comparison, or whose run is left out."""
    folder = write_run(tmp_path / "a")
    if isinstance(results, dict):
        results = json.dumps(json.loads((folder / "metrics.json").read_text()) | results)
    (folder / "metrics.json").write_bytes(results if isinstance(results, bytes) else results.encode())
    read = read_run(folder)
    assert read.state == "unreadable" and read.protocol == {}
    assert read.reason.startswith("metrics.json: ") and reason in read.reason


@pytest.mark.parametrize("file", ["status.json", "config.yaml"])
def test_read_run_keeps_metrics_beside_a_broken_file(tmp_path: Path, file: str) -> None:
    """Would catch a damaged configuration or status that removes the metrics of its run, or that nobody notices."""
    folder = write_run(tmp_path / "a")
    (folder / file).write_text("{a: [")
    read = read_run(folder)
    assert (read.state, read.metrics["nme_box"].value) == ("unreadable", 0.04)
    assert read.reason.startswith(f"{file}: ") and not read.ranked


def test_read_run_gives_the_reason_for_missing_metrics(tmp_path: Path) -> None:
    """Would catch failed, running and unfinished runs that look alike, and a multi-line reason in the table."""
    failed = {"state": "failed", "reason": "OutOfMemoryError: CUDA\n  out of memory"}
    running = {"state": "running", "started": run_folder.now(), "host": "node3", "pid": 9}
    lost = running | {"started": "2026-11-20T07:16:30+0000", "heartbeat": "2024-11-20T07:20:00+0000"}
    assert read_run(write_run(tmp_path / "a", status=failed, measured=False))[2:4] == (
        "failed",
        "OutOfMemoryError: CUDA out of memory",
    )
    assert read_run(write_run(tmp_path / "b", status=running, measured=False))[2:4] == (
        "running",
        f"since {running['started']}, process 9 on node3",
    )
    assert read_run(write_run(tmp_path / "e", status=lost, measured=False))[2] == "lost"
    for state in ("stopped", "queued"):
        read = read_run(write_run(tmp_path / state, status={"state": state, "reason": "asked"}, measured=False))
        assert read[2:4] == (state, "asked")
    assert read_run(write_run(tmp_path / "c", measured=False))[2:4] == ("finished", "no metrics.json")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.yaml").write_text("{}")
    assert read_run(tmp_path / "d")[2:4] == ("unknown", "no status.json, metrics.json")


# Comparing


def test_compare_puts_each_protocol_in_a_separate_table(tmp_path: Path) -> None:
    """Would catch numbers of different faces, boxes or rules in one column, and a table for each margin of a crop."""
    write_run(tmp_path / "a", protocol={"box_scale": 1.1})  # of an earlier version
    write_run(tmp_path / "b", protocol={"box": "given", "truth": "fedc"})
    write_run(tmp_path / "c")
    tables = compare(read_runs([tmp_path / "*"]), None)
    assert [[each.name for each in table.runs] for table in tables] == [["a", "c"], ["b"]]
    line = disagreement(tables)
    assert "truth (0123456789abcdef | fedc), box (points | given)" in line
    assert "dataset" not in line
    assert disagreement(tables[:1]) == ""


def test_describe_includes_every_entry_of_the_protocol() -> None:
    """Would catch a heading without an entry that the numbers depend on, such as one added later."""
    heading = describe(PROTOCOL | {"flip_test": True, "rotation": 5})
    assert heading.startswith("wflw98 test, 100 faces, wflw98, box: points, flip test: yes, pose: estimated")
    assert "truth: 0123456789abcdef" in heading and "evaluator: 1" in heading and "rotation: 5" in heading


def test_compare_lists_the_settings_that_differ() -> None:
    """Would catch an interpolated value shown twice, a path shown as a setting, or a hidden difference."""
    other = with_values(
        CONFIG,
        seed=2,
        datamodule__seed=2,
        trainer__max_epochs=10,
        scheduler__max_epochs=10,
        backbone__name="mobilenetv2_100",
        model__backbone__name="mobilenetv2_100",
        data__root="/mnt/b/wflw98",
        paths={"data": "/mnt/b", "run": "/mnt/b/run"},
        logger={},
    )
    table = settings_of(CONFIG, other)
    assert table.settings == ["seed", "trainer.max_epochs", "backbone.name"] and table.recipe == []


def test_compare_shows_a_setting_that_differs_from_its_copies() -> None:
    """Would catch keys with equal values taken for copies of each other, and a hidden copy with another value."""
    first = with_values(CONFIG, crop__size=16)
    both = with_values(CONFIG, crop__size=32, datamodule__batch_size=32)
    assert settings_of(first, both).settings == ["crop.size", "datamodule.batch_size"]
    assert settings_of(CONFIG, with_values(CONFIG, datamodule__seed=5)).settings == ["datamodule.seed"]


def test_compare_shows_settings_that_some_runs_do_not_have() -> None:
    """Would catch a hidden option of a single run, and columns of null values or of arguments of another class."""
    assert settings_of(CONFIG, with_values(CONFIG, trainer__gradient_clip_val=None)).settings == []
    assert settings_of(CONFIG, with_values(CONFIG, trainer__gradient_clip_val=1.0)).settings == [
        "trainer.gradient_clip_val"
    ]
    assert settings_of(CONFIG, with_values(CONFIG, backbone__weights="a.pth")).settings == ["backbone.weights"]
    other = with_values(CONFIG, backbone={"_target_": "facelab.networks.hrnet.Trunk", "width": 18})
    assert settings_of(CONFIG, other).settings == ["backbone._target_"]
    blur = {"_target_": "albumentations.GaussianBlur", "p": 0.3}
    table = settings_of(CONFIG, with_values(CONFIG, augment__pixels=[blur]))
    assert table.settings == ["augment.pixels"]
    assert sorted(setting(each, "augment.pixels") for each in table.runs) == ["[GaussianBlur]", "[]"]
    assert settings_of(
        with_values(CONFIG, augment__pixels=[blur]), with_values(CONFIG, augment__pixels=[blur | {"p": 0.5}])
    ).settings == ["augment.pixels[0].p"]


def test_compare_lists_the_recipe_of_a_method_below_the_table() -> None:
    """Would catch a column for each value of a method's recipe, and a value changed by hand that is hidden there."""
    pfld = with_values(
        CONFIG, model={"_target_": "lightning_modules.pfld.PFLD"}, crop__size=112, trainer__max_epochs=100, seed=1
    )
    table = settings_of(CONFIG, pfld)
    assert table.settings == ["model._target_", "trainer.max_epochs"] and table.recipe == ["crop.size"]
    cells = build_cells(table)
    assert cells[0][1].text == "model" and {row[1].text for row in cells[1:]} == {"PIPNet", "PFLD"}
    by_hand = with_values(CONFIG, crop__size=128)
    assert "crop.size" in settings_of(CONFIG, pfld, by_hand).settings


def test_compare_sorts_runs_by_nme_box() -> None:
    """Would catch runs sorted by text or name, and a first place for an undefined, infinite or unfinished result."""
    values = {"d": math.nan, "c": math.inf, "b": 0.1, "a": 0.09}
    runs = [run(name, nme_box=(value, 0, 1)) for name, value in values.items()]
    runs += [run("killed", state="running", nme_box=(0.02, 0, 1))]
    assert [each.name for each in compare(runs, None)[0].runs] == ["a", "b", "c", "d", "killed"]


def test_compare_sorts_detectors_by_falling_ap50() -> None:
    """Would catch the worst detector in the first place, because lower errors are better, and columns of landmarks."""
    protocol = {"dataset": "boxes", "split": "test", "photos": 9}
    metric = ERROR._replace(better="higher")
    runs = [
        run(name)._replace(protocol=protocol, metrics={"wider_hard": metric, "ap50": metric._replace(value=value)})
        for name, value in {"a": 0.7, "b": 0.9, "c": math.nan}.items()
    ]
    (table,) = compare(runs, None)
    assert [each.name for each in table.runs] == ["b", "a", "c"]
    assert (table.metrics, table.noun) == (["ap50", "wider_hard"], "photos")
    assert describe(table.protocol) == "boxes test, 9 photos"


def test_best_requires_separate_intervals() -> None:
    """Would catch a best number whose interval overlaps another, and a higher AUC treated as worse."""
    a, b, c = (row(name, nme_box=ends) for name, ends in {"a": (4, 3, 5), "b": (6, 5.1, 7), "c": (6, 5, 7)}.items())
    assert best([a, b], "nme_box") is a and best([b, a], "nme_box") is a
    assert best([a, b, c], "nme_box") is None and best([a], "nme_box") is None
    low, high = row("low", auc08_ioc=(0.4, 0.3, 0.45)), row("high", auc08_ioc=(0.6, 0.5, 0.7))
    assert best([low, high], "auc08_ioc") is high
    same = [row(name, fr08_ioc=(1, 1, 1)) for name in "ab"]
    assert best(same, "fr08_ioc") is None


def test_best_ignores_failed_runs_and_numbers_without_interval() -> None:
    """Would catch a failed run marked as best, and a number without an interval marked as if it were certain."""
    a, b = row("a", nme_box=(4, 3, 5)), row("b", nme_box=(7, 6, 8))
    failed = row("d", state="failed", nme_box=(1, 0.5, 2))
    assert best([failed, a, b], "nme_box") is a
    assert best([a, row("b", nme_box=(7, math.nan, math.nan))], "nme_box") is None
    assert best([row("a", nme_box=(4, math.nan, math.nan)), b], "nme_box") is None
    neither = [row(name, faces=(value, value - 1, value + 1)) for name, value in (("a", 1), ("b", 9))]
    assert best(neither, "faces") is None


# Seeds


def test_compare_merges_runs_that_differ_only_in_the_seed() -> None:
    """Would catch a mean over different settings, over separate seeds of the data, or over the same seed twice."""
    table = compare([*seeds("a", 0.04, 0.05, 0.06), *seeds("b", 0.03)], None)[0]
    assert [(each.name, len(each.runs)) for each in table.rows] == [("b-s1", 1), ("a (3 seeds)", 3)]
    mean = table.rows[1]
    assert mean.metrics["nme_box"][:3] == pytest.approx((0.05, 0.049, 0.051))
    assert mean.deviations["nme_box"] == pytest.approx(0.01)
    assert {each.name for each in table.runs} == {"a-s1", "a-s2", "a-s3", "b-s1"}
    first, second = seeds("a", 0.04, 0.05)
    apart = second._replace(config=second.config | {"datamodule.seed": 7})
    repeated = second._replace(name="again")
    failed = second._replace(state="failed")
    for other in (apart, failed):
        assert [len(each.runs) for each in rows_of([first, other])] == [1, 1]
    assert sorted(len(each.runs) for each in rows_of([first, second, repeated])) == [1, 2]
    assert [len(each.runs) for each in rows_of([run("x"), run("y")])] == [1, 1]


EMA = {"ema": {"_target_": "lightning.pytorch.callbacks.EMAWeightAveraging", "decay": 0.99}}


def table_of_seeds(*changes: dict[str, Any]) -> Table:
    """Return the table of runs of seeds 1, 2, ... with these changes of one configuration."""
    configs = [
        with_values(CONFIG, seed=seed, datamodule__seed=seed, **values) for seed, values in enumerate(changes, start=1)
    ]
    return settings_of(*configs)


@pytest.mark.parametrize(
    "values",
    [
        *({"callbacks": EMA}, {"callbacks": {"mine": {"_target_": "callbacks.mine.Mine"}}}),
        *({"compile": True}, {"memory_format": "contiguous"}, {"test_ckpt": "best"}, {"data__seed": 3}),
        *({f"trainer__{key}": 1} for key in ("precision", "deterministic", "limit_train_batches", "gradient_clip_val")),
        *({f"trainer__{key}": 1} for key in ("accumulate_grad_batches", "devices", "strategy", "accelerator")),
    ],
    ids=str,
)
def test_compare_separates_seeds_of_different_training(values: dict[str, Any]) -> None:
    """Would catch a mean over seeds that includes a run trained in another way, e.g. with averaged weights."""
    table = table_of_seeds({}, values)
    assert [len(each.runs) for each in table.rows] == [1, 1]
    (key,) = values
    assert table.settings == ["seed", key.replace("__", ".")]


@pytest.mark.parametrize(
    "values",
    [
        {"callbacks": {"grid": {"_target_": "callbacks.pictures.FaceGrid", "rows": 9}, "progress": None}},
        {"callbacks": {"resumption": {"_target_": "callbacks.resume.ResumableCheckpoint", "minutes": 1}}},
        {"datamodule__num_workers": 8},
        {"trainer__enable_progress_bar": False},
        {"trainer__log_every_n_steps": 1},
        {"trainer__gradient_clip_val": None},
        {"logger": {}},
        {"test": False},
    ],
    ids=str,
)
def test_compare_merges_seeds_despite_settings_without_effect(values: dict[str, Any]) -> None:
    """Would catch seeds in separate rows because one run used more workers or logged other pictures."""
    table = table_of_seeds({}, values)
    assert [len(each.runs) for each in table.rows] == [2] and table.settings == ["seed"]


def test_compare_merges_seeds_if_the_data_seed_is_equal_to_one() -> None:
    """Would catch a separate row for seed 2 because data.seed is 2 in all runs, and other data merged as a seed."""
    assert [len(each.runs) for each in table_of_seeds(*[{"data__seed": 2}] * 3).rows] == [3]
    assert [len(each.runs) for each in table_of_seeds({"data__seed": 1}, {"data__seed": 2}).rows] == [2]
    assert [len(each.runs) for each in table_of_seeds({"data__seed": 2}, {"data__seed": 1}).rows] == [1, 1]


def test_rows_of_merges_evaluations_of_several_seeds() -> None:
    """Would catch evaluations of seeds split by the folder of their run, or merged across different checkpoints."""
    a, b = (each._replace(config=each.config | {"evaluate.ckpt": f"logs/{each.name}"}) for each in seeds("a", 1, 2))
    assert [each.name for each in rows_of([a, b])] == ["a (2 seeds)"]
    best_one = b._replace(config=b.config | {"evaluate.ckpt": "logs/b/checkpoints/best.ckpt"})
    assert len(rows_of([a, best_one])) == 2


def test_best_requires_a_lead_beyond_the_deviation_of_seeds() -> None:
    """Would catch a best mean whose lead another seed could reverse, because each run alone has a narrow interval."""
    close = [row_of(seeds("a", 0.040, 0.050)), row_of(seeds("b", 0.046, 0.056))]
    assert best(close, "nme_box") is None
    alone = row("c", nme_box=(0.0445, 0.044, 0.045))
    assert best([close[1], alone], "nme_box") is None  # 0.0065 below 0.051, which is within the deviation of the seeds
    clear = [row_of(seeds("a", 0.040, 0.042)), row_of(seeds("b", 0.048, 0.050))]
    assert best(clear, "nme_box") is clear[0]

    def with_ends(low: float, high: float) -> list[Row]:
        """Return the clear rows with another interval."""
        ends = {"low": low, "high": high}
        return [each._replace(metrics={"nme_box": each.metrics["nme_box"]._replace(**ends)}) for each in clear]

    assert best(with_ends(0.03, 0.06), "nme_box") is None
    assert best(with_ends(math.nan, math.nan), "nme_box").name == "a (2 seeds)"  # type: ignore[union-attr]


def test_row_of_gives_infinite_seeds_no_deviation() -> None:
    """Would catch an error in the comparison caused by one run that leaves a point out."""
    mean = row_of(seeds("a", 0.04, math.inf))
    assert mean.metrics["nme_box"].value == math.inf and math.isnan(mean.deviations["nme_box"])


# Published results


def test_paper_value_requires_the_same_test_set_and_method() -> None:
    """Would catch a published number shown for another split, number of faces, layout, backbone or metric."""
    official = PROTOCOL | {"faces": 2500}
    config = {MODEL: "lightning_modules.pipnet.PIPNet", "backbone.name": "resnet18"}

    def shown(metric: str, protocol: dict[str, Any], **settings: Any) -> float:
        one = run("a", nme_ioc=(0.05, 0.04, 0.06))._replace(protocol=protocol, config=config | settings)
        table = compare([one], None)[0]
        return paper_value(table, table.rows[0], metric)

    assert shown("nme_ioc_crop", official) == 0.0457
    assert math.isnan(shown("nme_ioc", official))  # the paper measures in its stretched crop
    for entry in ({"split": "val"}, {"faces": 2499}, {"dataset": "mine"}, {"layout": "ibug68"}):
        assert math.isnan(shown("nme_ioc_crop", official | entry))
    assert math.isnan(shown("nme_ioc_crop", official | {"box_jitter": "scale 0.9 to 1.3, shift 0.1, seed 0"}))
    assert math.isnan(shown("nme_box", official))
    assert math.isnan(shown("nme_ioc_crop", official, **{"backbone.name": "resnet10t"}))
    hrnet = {MODEL: "lightning_modules.hrnet.HRNet"}
    w18 = {"backbone.width": 18, "backbone.modules": [1, 4, 3]}
    assert shown("nme_ioc_tag_pose", official, **hrnet, **w18) == 0.0786
    assert math.isnan(shown("nme_ioc_tag_pose", official, **hrnet, **w18 | {"backbone.modules": [1, 1, 1]}))
    assert math.isnan(shown("nme_ioc_tag_pose", official, **hrnet))  # heatmaps of another backbone


def test_published_file_holds_fractions_with_a_source() -> None:
    """Would catch a published number typed in percent, twice, or without its source."""
    with published.FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(0 < float(each["value"]) < 1 and each["source"] and each["faces"].isdecimal() for each in rows)
    keys = [tuple(each[key] for key in ("dataset", "split", "method", "settings", "metric")) for each in rows]
    assert len({*keys}) == len(keys)


def test_official_sets_are_listed_in_help_and_docs(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a published test set that no help text or document mentions, or a mentioned one that is missing."""
    sets = published.official_sets()
    assert sets["300w68"] == "test, 689 faces, layout ibug68"
    assert OverridesParser.create().parse_override("data.name=300w68").value() == "300w68"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("sys.argv", ["compare.py", "--help"])
        parse()
    help_text = " ".join(capsys.readouterr().out.split())
    docs, header = (ROOT / "docs" / "comparing.md").read_text(), (ROOT / "conf" / "data" / "folder.yaml").read_text()
    for name, description in sets.items():
        faces = description.split()[1]
        assert f"{name} ({description})" in help_text
        assert re.search(rf"\| `{name}`.*\| {int(faces.replace(',', '')):,} \|", docs)
        assert (ROOT / "conf" / "data" / f"{name}.yaml").is_file() or f"data.name={name} ({faces} faces" in header


# Cost


def test_read_run_reads_counted_and_measured_costs(tmp_path: Path) -> None:
    """Would catch MACs or latency shown in another unit, and an older run without costs that is refused."""
    folder = write_run(tmp_path / "sweep" / "0")
    old = write_run(tmp_path / "sweep" / "1", config=with_values(CONFIG, backbone__name="x"))
    results = json.loads((folder / "metrics.json").read_text())
    results["cost"] = {"params": 2_000_000, "macs": 580_000_000, "flops": 1_160_000_000}
    (folder / "metrics.json").write_text(json.dumps(results))
    (folder / "benchmark.json").write_text(json.dumps({"latency_p50_ms": 12.34, "cpu": "EPYC", "threads": 1}))
    rows = build_cells(compare([read_run(folder), read_run(old)], ["nme_box"])[0])
    assert [cell.text for cell in rows[0][-3:]] == ["params M", "MACs M", "latency ms"]
    assert {tuple(cell.text for cell in row[-3:]) for row in rows[1:]} == {("2.00", "580.0", "12.3"), ("-", "-", "-")}
    (folder / "benchmark.json").write_text("{")
    assert read_run(folder).state == "unreadable"


def test_grid_shows_costs_with_pose_in_separate_columns(tmp_path: Path) -> None:
    """Would catch the cost of landmarks and pose together shown as the cost of the landmarks."""
    landmarks_only = {"params": 9_000, "macs": 8_060_000, "latency_p50_ms": 1.5, "cpu": "EPYC"}
    with_pose = {"params": 10_000, "macs": 9_140_000, "latency_p50_ms": 2.5, "cpu": "EPYC", "pose": True}
    for name, size, files in (
        ("a", 1, (landmarks_only, with_pose)),
        ("b", 2, (None, with_pose)),
        ("c", 3, (landmarks_only | {"pose": False}, None)),
    ):
        folder = write_run(tmp_path / "sweep" / name, config=with_values(CONFIG, crop__size=size))
        for file, content in zip(("benchmark.json", "benchmark_pose.json"), files, strict=True):
            if content:
                (folder / file).write_text(json.dumps(content))
    runs = read_runs([f"{tmp_path}/sweep/*"])
    (table,) = compare(runs, ["nme_box"])
    heading, *rows = build_cells(table)
    names = ["params M", "MACs M", "latency ms"]
    assert [cell.text for cell in heading[-6:]] == [*names, *(f"with pose: {name}" for name in names)]
    landmark_costs, pose_costs, no_costs = ["0.01", "8.1", "1.5"], ["0.01", "9.1", "2.5"], ["-"] * 3
    assert {row[0].text: [cell.text for cell in row[-6:]] for row in rows} == {
        "a": landmark_costs + pose_costs,
        "b": no_costs + pose_costs,
        "c": landmark_costs + no_costs,
    }
    assert not any("different machines" in line for line in remarks(table))
    write_csv(tmp_path / "all.csv", runs, [table])
    with (tmp_path / "all.csv").open() as file:
        written_macs = {row["run"]: (row["macs"], row["pose_macs"]) for row in csv.DictReader(file)}
    assert written_macs == {"a": ("8060000.0", "9140000.0"), "b": ("", "9140000.0"), "c": ("8060000.0", "")}
    (tmp_path / "sweep" / "c" / "benchmark_pose.json").write_text(json.dumps(with_pose | {"cpu": "Xeon"}))
    assert any("different machines" in line for line in remarks(*compare(read_runs([f"{tmp_path}/sweep/*"]), None)))


def test_read_run_reports_skipped_faces(tmp_path: Path) -> None:
    """Would catch a number over fewer faces that is shown without a remark."""
    read = read_run(write_run(tmp_path / "a", metrics={"faces": 98.0, "faces_skipped": 2.0}))
    assert read.ranked and read.reason == "2 faces could not be measured"


def test_compare_refuses_an_unknown_metric(tmp_path: Path) -> None:
    """Would catch a column of dashes for a misspelt metric, and a refused metric that only some runs have."""
    runs = [read_run(write_run(tmp_path / "a")), read_run(write_run(tmp_path / "b", metrics={"nme_ioc_tag_blur": 0.1}))]
    with pytest.raises(RunError, match="no run has a metric nme_bax; did you mean nme_box"):
        compare(runs, ["nme_bax"])
    assert compare(runs, ["nme_ioc_tag_blur", "nme_ipd"])[0].metrics == ["nme_ioc_tag_blur", "nme_ipd"]
    assert [row[1].text for row in build_cells(compare(runs, ["nme_ioc_tag_blur"])[0])[1:]] == ["-", "10.00"]


# Printing and writing


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return two complete runs of one protocol, one of another, and three runs without metrics."""
    folder = tmp_path / "sweep"
    wide = ERROR._replace(value=0.06, low=0.05, high=0.08)
    near = ERROR._replace(value=0.04012345678901234, low=0.039, high=0.041)
    write_run(folder / "0", config=with_values(CONFIG, crop__size=3), metrics={"nme_box": wide})
    write_run(folder / "1", metrics={"nme_box": near})
    write_run(folder / "2", protocol={"flip_test": True})
    write_run(folder / "3", status={"state": "failed", "reason": "ValueError: a | b [c]"}, measured=False)
    write_run(folder / "4", status={"state": "running", "started": "now", "host": "h", "pid": 1}, measured=False)
    write_run(folder / "5")
    (folder / "5" / "metrics.json").write_text("{")
    return folder


def test_compare_script_prints_every_run(sweep: Path) -> None:
    """Would catch a missing run, a truncated number, or a fraction shown as a percentage."""
    result = run_script(sweep)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    places = [next(i for i, line in enumerate(lines) if f"sweep/{job} " in line) for job in (1, 0, 2, 3, 4, 5)]
    assert places == sorted(places)
    first, second = lines[places[0]].split(), lines[places[1]].split()
    assert first == ["sweep/1", "256", "5.00", "4.01", "10.00", "50.00", "3.00"] and second[1:4] == [
        "3",
        "5.00",
        "6.00",
    ]
    assert "3.90..4.10" in lines[places[0] + 1]
    for text in (
        "Table 1: wflw98 test, 100 faces, wflw98, box: points, flip test: no, pose: estimated",
        "protocols differ in flip_test (no | yes)",
        "ValueError: a | b [c]",
        "process 1 on h: no heartbeat, 'now' is not a time",
        "unreadable",
    ):
        assert text in result.stdout


def test_compare_script_keeps_numbers_whole_in_a_narrow_terminal(sweep: Path) -> None:
    """Would catch columns so narrow that digits are cut off or wrapped to the next line."""
    result = run_script(sweep, FORCE_COLOR="1", COLUMNS="40")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)
    assert "3.90..4.10" in shown and "…" not in shown
    assert re.search(r"sweep/1 +256 +5\.00 +4\.01 +10\.00 +50\.00 +3\.00", shown)


def test_compare_script_writes_full_fractions_to_csv(sweep: Path, tmp_path: Path) -> None:
    """Would catch rounded or percent numbers in the CSV file, or a missing run, interval or protocol entry."""
    file = tmp_path / "new" / "runs.csv"
    result = run_script(sweep, "--csv", file, "--metrics", "nme_box", "faces")
    assert result.returncode == 0, result.stderr
    with file.open(newline="") as stream:
        rows = {row["run"]: row for row in csv.DictReader(stream)}
    assert list(rows) == [f"sweep/{job}" for job in (1, 0, 2, 3, 4, 5)]
    first = rows["sweep/1"]
    assert first["nme_box"] == "0.04012345678901234" and first["faces"] == "100.0"
    assert (first["nme_box_low"], first["nme_box_high"], first["nme_box_faces"]) == ("0.039", "0.041", "100")
    assert (first["nme_box_unit"], first["faces_unit"]) == ("fraction", "count")
    assert (first["table"], first["config.crop.size"], first["protocol.flip_test"]) == ("1", "256", "False")
    assert rows["sweep/2"]["protocol.flip_test"] == "True" and rows["sweep/2"]["nme_box_low"] == ""
    assert first["runs"] == "1" and "nme_box_sd" not in first and "nme_box_paper" not in first
    assert (rows["sweep/3"]["state"], rows["sweep/3"]["reason"]) == ("failed", "ValueError: a | b [c]")
    assert rows["sweep/3"]["nme_box"] == rows["sweep/3"]["protocol.dataset"] == ""
    assert sorted(path.name for path in file.parent.iterdir()) == ["runs.csv"]


def test_compare_script_writes_a_markdown_table(sweep: Path, tmp_path: Path) -> None:
    """Would catch a column added by a bar in a reason, a best number without bold, or bold within the noise."""
    file = tmp_path / "runs.md"
    assert run_script(sweep, "--markdown", file, "--metrics", "nme_box", "nme_box_yaw_0_30").returncode == 0
    text = file.read_text()
    assert (
        "| run | crop.size | nme_box (100 faces) | nme_box_yaw_0_30 (60 faces) |\n| --- | --- | ---: | ---: |" in text
    )
    assert "| sweep/1 | 256 | **4.01** (3.90..4.10) | 3.00 |" in text
    assert "| sweep/0 | 3 | 6.00 (5.00..8.00) | 3.00 |" in text
    assert r"ValueError: a \| b \[c\]" in text
    assert text.count("**Table ") == 2 and "**Runs without metrics**" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        ([".", "--metrics", "nme_bx"], "did you mean nme_box"),
        ([".", "--csv", "."], "Is a directory"),
        ([".", "--html", "."], "Is a directory"),
        ([".", "--pictures", "-1"], "--pictures -1: expected 0 or more"),
    ],
)
def test_compare_script_reports_mistakes_in_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    """Would catch a traceback, or a mistake with an exit status of success."""
    write_run(tmp_path / "0")
    result = run_script(*(tmp_path / word if word in (".", "nowhere") else word for word in words))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert message in result.stderr


def test_compare_script_imports_nothing_heavy() -> None:
    """Would catch a comparison that waits seconds for torch, or that only works where torch is installed."""
    code = "import sys, compare; print({'torch', 'lightning', 'hydra', 'numpy', 'rich'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
    assert "--markdown FILE" in run_script("--help").stdout


def test_compare_script_writes_seed_means_and_runs(tmp_path: Path) -> None:
    """Would catch a mean of seeds that is missing, that has no deviation, or that replaces its runs in the CSV file."""
    for seed, value in ((1, 0.04), (2, 0.05)):
        config = with_values(CONFIG, seed=seed, datamodule__seed=seed)
        write_run(tmp_path / "sweep" / str(seed), config=config, metrics={"nme_box": value})
    assert run_script(tmp_path / "sweep", "--csv", tmp_path / "a.csv", "--markdown", tmp_path / "a.md").returncode == 0
    with (tmp_path / "a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["run"], row["runs"], row["state"]) for row in rows] == [
        *[("sweep/1,2 (2 seeds)", "2", "mean"), ("sweep/1", "1", "finished"), ("sweep/2", "1", "finished")]
    ]
    assert float(rows[0]["nme_box"]) == pytest.approx(0.045)
    assert float(rows[0]["nme_box_sd"]) == pytest.approx(0.0070710678) and rows[1]["nme_box_sd"] == ""
    assert rows[0]["config.seed"] == "1, 2"
    assert "| sweep/1,2 (2 seeds) | 1, 2 |" in (tmp_path / "a.md").read_text()
    assert "4.50 (± 0.71)" in (tmp_path / "a.md").read_text() and "| sweep/1 |" not in (tmp_path / "a.md").read_text()
    each = run_script(tmp_path / "sweep", "--each").stdout
    assert "± 0.71" in each and "sweep/2 " in each


# Pairs of runs


def test_compare_pair_uses_the_common_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch rows paired by position, a reversed sign or direction, a missing number or an ignored --metrics."""
    more = {"fr10_ioc": 0.1, "nme_box_p90": 0.1}
    a, b = (write_run(tmp_path / "runs" / name, metrics=more) for name in ("first", "second"))
    photos = [f"{i // 2}.jpg" for i in range(40)]
    errors = [0.03 + 0.002 * i for i in range(40)]
    write_faces(a, errors, photos)
    write_faces(b, [error + 0.01 for error in errors[2:]], photos[2:])  # the first photo is missing
    pair = pairs.compare_pair(read_run(a), read_run(b), ["nme_box"])
    assert (pair.common, pair.faces) == (38, (40, 38))
    assert pair.differences["nme_box"][:3] == pytest.approx((-0.01, -0.01, -0.01))
    run_compare(monkeypatch, tmp_path / "runs" / "*", "--pair", "first", "second")
    shown = capsys.readouterr().out
    assert re.search(r"nme_box +-1\.00 +-1\.00\.\.-1\.00 +% +0\.002 +38 +100 % +A", shown)
    assert re.search(r"auc08_ioc +\+\d\.\d\d .* % +0\.002 +38 +100 % +A", shown)  # higher is better
    assert "38 common faces (of 40 and 38)" in shown
    assert "nme_diag" not in shown
    run_compare(
        monkeypatch, tmp_path / "runs" / "*", "--metrics", "fr10_ioc", "nme_box_p90", "--pair", "second", "first"
    )
    shown = capsys.readouterr().out.partition("A second")[2]
    assert re.search(r"fr10_ioc +\+13\.16 .* % +0\.0\d\d +38 +0 % +B", shown)
    assert "nme_box " in shown and "nme_box_p90" not in shown  # no mean over faces
    write_faces(b, errors, photos, size=90)  # other true points for the same photos
    with pytest.raises(SystemExit, match="no common face"):
        run_compare(monkeypatch, tmp_path / "runs" / "*", "--pair", "first", "second")


@pytest.mark.parametrize(
    ("low", "high", "shown", "better"),
    [
        (0.001, 0.002, "+0.10..+0.20", "B"),
        (-0.002, -0.001, "-0.20..-0.10", "A"),
        (-0.001, 0.002, "-0.10..+0.20", "-"),
        (0.00001, 0.002, "+0.00..+0.20", "-"),
        (-0.00004, -0.00001, "-0.00..-0.00", "-"),
        (math.nan, math.nan, "-..-", "-"),
    ],
)
def test_pair_cells_name_the_better_run_if_the_shown_interval_excludes_zero(
    low: float, high: float, shown: str, better: str
) -> None:
    """Would catch a better run beside a difference that is shown as zero."""
    difference = Difference((low + high) / 2, low, high, probability=0.01, smaller=0.5, faces=10)
    rows = pairs.pair_cells(pairs.Pair(10, (10, 10), {"nme_box": difference}), {"nme_box": ERROR})
    assert (rows[1][2].text, rows[1][-1].text) == (shown, better)


def test_compare_script_refuses_an_ambiguous_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a comparison of two runs that the user did not mean."""
    for name in ("mbv2-s1", "mbv2-s2"):
        write_run(tmp_path / name)
    for names, message in (
        (("mbv2", "s1"), "several runs"),
        (("s3", "s1"), "matches no run"),
        (("s1", "s2"), "faces.csv"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_compare(monkeypatch, f"{tmp_path}/*", "--pair", *names)


def test_grid_labels_runs_by_overrides_if_settings_do_not_differ() -> None:
    """Would catch rows that look alike because a part is null in one run and of another class in the others."""
    poses: dict[str, dict[str, Any]] = {
        "pose=none": {"pose": None},
        "pose=one": {"pose._target_": "a.A"},
        "pose=two": {"pose._target_": "a.B"},
    }
    jobs = [
        run(f"sweep/{number}", nme_box=(0.1 + number, 0.1, 2.0))._replace(
            config={"seed": 1, "model._target_": "a.PFLD"} | config, typed=("experiment=x", typed)
        )
        for number, (typed, config) in enumerate(poses.items())
    ]
    (table,) = compare(jobs, ["nme_box"])
    assert [line[1].text for line in build_cells(table)] == ["typed", "pose=none", "pose=one", "pose=two"]
    assert labels_of(table) == ["pose=none", "pose=one", "pose=two"]
    second_seeds = [
        each._replace(folder=Path(f"more/{each.name}"), config=each.config | {"seed": 2}, typed=(*each.typed, "seed=2"))
        for each in jobs
    ]
    assert labels_of(*compare([*jobs, *second_seeds], ["nme_box"])) == [f"{each} (2 seeds)" for each in poses]
    with_sizes = [
        each._replace(config=each.config | {"crop.size": size}) for each, size in zip(jobs, (1, 2, 3), strict=True)
    ]
    assert [cell.text for cell in build_cells(*compare(with_sizes, ["nme_box"]))[0]] == ["run", "crop.size", "nme_box"]


def test_grid_shows_angles_in_degrees() -> None:
    """Would catch angles multiplied by 100 under a heading of percentages."""
    one = run("a", mae_angle=(5.0, 4.0, 6.5))
    degrees = {"mae_angle": one.metrics["mae_angle"]._replace(unit="degrees")}
    (table,) = compare([one._replace(metrics=one.metrics | degrees)], None)
    assert [cell.text for cell in build_cells(table)[1]] == ["a", "5.00"]
    assert build_cells(table)[1][1].below == "4.00..6.50"
    assert any("degrees" in line for line in remarks(table))
