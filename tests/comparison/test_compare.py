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
from run_folders import CONFIG, PROTOCOL, changed, opened, write, write_faces

from compare import parse
from facelab import run_folder
from facelab.comparison import pairs, published
from facelab.comparison.grid import build_cells, describe, disagreement, grid_without_numbers, remarks
from facelab.comparison.group import MAIN, MODEL, Row, Table, best, compare, paper_value, row_of, rows_of
from facelab.comparison.page import labels_of
from facelab.comparison.read import Run, read_run, read_runs, setting, settings
from facelab.comparison.write import write_csv
from facelab.errors import RunError


def run(name: str, state: str = "finished", **metrics: tuple[float, float, float]) -> Run:
    """A run whose metrics have these values and intervals."""
    values = {key: value for key, (value, _, _) in metrics.items()} | {"faces": 100.0}
    intervals = {key: (low, high) for key, (_, low, high) in metrics.items()}
    return Run(name, Path(name), state, "", {}, dict(PROTOCOL), values, {}, intervals, {}, {}, {}, ())


def row(name: str, state: str = "finished", **metrics: tuple[float, float, float]) -> Row:
    """The row of a single such run."""
    return row_of([run(name, state, **metrics)])


def seeds(name: str, *values: float, **config: Any) -> list[Run]:
    """Runs of seeds 1, 2, ... with these errors, whose intervals over faces reach 0.001 to both sides."""
    return [
        run(f"{name}-s{seed}", nme_box=(value, value - 0.001, value + 0.001))._replace(
            config={"seed": seed, "datamodule.seed": seed, "name": name} | config
        )
        for seed, value in enumerate(values, start=1)
    ]


def settings_of(*configs: dict[str, Any]) -> Table:
    """The table of runs with these configurations."""
    runs = [run(str(i))._replace(config=settings(config)) for i, config in enumerate(configs)]
    return compare(runs, None)[0]


def door(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "compare.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


# Reading


def test_the_run_of_this_project_is_read(tmp_path: Path) -> None:
    """A metric or an entry of metrics.json is renamed where it is written, and its column silently vanishes."""
    from callbacks.results import intervals
    from facelab.faces.layouts import IBUG68
    from facelab.files import write_json
    from facelab.metrics import landmarks
    from facelab.metrics.face_table import FaceTable

    ones = np.ones(3)
    table = FaceTable(
        face_id=np.arange(3),
        error=np.full((3, 68), 2.0),
        valid=np.ones((3, 68), bool),
        **dict.fromkeys(("ioc", "ipd", "box", "diag"), 50 * ones),
        pose=np.array([[0, 0, 0], [45, 0, 0], [80, 0, 0]], float),
        tags=np.zeros((3, 0), bool),
        pose_error=np.ones((3, 3)),
    )
    folder = write(tmp_path / "a", measured=False)
    results = {
        "protocol": PROTOCOL | {"faces": 3},
        "metrics": landmarks.summary(table, IBUG68, ()),
        "counts": landmarks.counts(table, IBUG68, ()),
        "intervals": intervals(table, IBUG68, ()),
    }
    write_json(folder / "metrics.json", results)
    found = read_run(folder)
    assert found.ranked and found.reason == ""
    assert compare([found], None)[0].metrics == list(MAIN)
    assert found.metrics["nme_box"] == pytest.approx(0.04)
    assert {"nme_ioc", "nme_box", "fr08_ioc", "auc08_ioc", "nme_box_yaw_0_30"} <= set(found.intervals)
    assert [found.faces(name) for name in ("nme_box", "fr08_ioc", "nme_box_yaw_30_60")] == [3, 3, 1]


def test_null_is_infinite_where_faces_stand_behind_it(tmp_path: Path) -> None:
    """A method that leaves points out reads as one that was not measured, or an empty bucket as an infinite error."""
    null = dict.fromkeys(("nme_box", "nme_box_yaw_0_30", "nme_box_yaw_60_90", "nme_box_yaw_mean"), None)
    counts = {"nme_box_yaw_60_90": 0, "nme_box_yaw_mean": 60}
    found = read_run(write(tmp_path / "a", metrics=null, counts=counts, intervals={"nme_box": [0.04, None]}))
    assert found.metrics["nme_box"] == math.inf and found.intervals["nme_box"] == (0.04, math.inf)
    assert found.metrics["nme_box_yaw_0_30"] == math.inf
    assert math.isnan(found.metrics["nme_box_yaw_60_90"]) and math.isnan(found.metrics["nme_box_yaw_mean"])
    full = read_run(write(tmp_path / "b", metrics=null, counts=counts | {"nme_box_yaw_60_90": 5}))
    assert full.metrics["nme_box_yaw_mean"] == math.inf


def test_folders_sweeps_and_patterns(tmp_path: Path) -> None:
    """Job 10 sorts before job 2, a run counts twice, a pattern finds nothing, or an empty job is forgotten."""
    for name in ("sweep/10", "sweep/2", "runs/a", "runs/b"):
        write(tmp_path / name)
    (tmp_path / "sweep" / "11").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").touch()
    found = read_runs([tmp_path / "sweep", tmp_path / "sweep" / "2", f"{tmp_path}/runs/*", f"{tmp_path}/s*"])
    assert [each.name for each in found] == ["sweep/2", "sweep/10", "sweep/11", "a", "b"]
    assert [each.state for each in found] == ["finished", "finished", "no run", "finished", "finished"]


def test_jobs_of_a_sweep_that_have_no_folder_are_missing(tmp_path: Path) -> None:
    """A grid whose last cells never began looks complete; nobody can tell what they were to be."""
    write(tmp_path / "sweep" / "0")
    write(tmp_path / "sweep" / "2", status={"state": "failed", "reason": "?"}, measured=False)
    cells = {"0": ["seed=1"], "2": ["seed=3"], "10": ["backbone=mbv2", "seed=4"], "9": ["seed=2"]}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"stamp": "sweep", "overrides": [], "cells": cells}))
    found = read_runs([tmp_path / "sweep"])
    assert [(each.name, each.state) for each in found] == [
        *[("sweep/0", "finished"), ("sweep/2", "failed"), ("sweep/9", "missing"), ("sweep/10", "missing")]
    ]
    rows = [[cell.text for cell in row] for row in grid_without_numbers(found)]
    assert rows[3] == ["sweep/10", "backbone=mbv2 seed=4", "missing", "not started"]
    assert read_runs([tmp_path / "sweep" / "2"])[0].typed == ("seed=3",)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "sweep.json").write_text(json.dumps({"cells": {"0": []}}))
    assert [each.state for each in read_runs([tmp_path / "new"])] == ["missing"]
    (tmp_path / "new" / "sweep.json").write_text("{")
    (broken,) = read_runs([tmp_path / "new"])
    assert broken.state == "unreadable" and "sweep.json cannot be read" in broken.reason


@pytest.mark.parametrize("path", ["nowhere", "run*", "."])
def test_nothing_found_is_an_error(tmp_path: Path, path: str) -> None:
    """A typing mistake gives an empty table that looks like a result."""
    (tmp_path / "notes").mkdir()
    with pytest.raises(RunError, match=str(tmp_path)):
        read_runs([tmp_path / path])


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ('{"name": "a", "prot', "Unterminated string"),
        ("[1, 2]", "is not a mapping"),
        ({"protocol": {}}, "has no `protocol`"),
        ({"intervals": None}, "has no `intervals`"),
        ({"metrics": {"nme_box": [1]}}, "nme_box is [1], expected a number"),
        ({"counts": {"nme_box": "many"}}, "counts.nme_box is 'many', expected an integer"),
        ({"intervals": {"nme_box": 1}}, "intervals.nme_box is 1, expected two numbers"),
        (b"\xff\xfe", "codec"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, results: Any, reason: str) -> None:
    """Half a file ends the whole comparison with a traceback, or its run is left out."""
    folder = write(tmp_path / "a")
    if isinstance(results, dict):
        results = json.dumps(json.loads((folder / "metrics.json").read_text()) | results)
    (folder / "metrics.json").write_bytes(results if isinstance(results, bytes) else results.encode())
    found = read_run(folder)
    assert found.state == "unreadable" and found.protocol == {}
    assert found.reason.startswith("metrics.json: ") and reason in found.reason


@pytest.mark.parametrize("file", ["status.json", "config.yaml"])
def test_numbers_survive_a_broken_neighbour(tmp_path: Path, file: str) -> None:
    """A damaged configuration takes the numbers of its run with it, or goes unnoticed."""
    folder = write(tmp_path / "a")
    (folder / file).write_text("{a: [")
    found = read_run(folder)
    assert (found.state, found.metrics["nme_box"]) == ("unreadable", 0.04)
    assert found.reason.startswith(f"{file}: ") and not found.ranked


def test_why_a_run_has_no_numbers(tmp_path: Path) -> None:
    """Failed, running and unfinished runs look alike, or a multi-line reason tears the table."""
    failed = {"state": "failed", "reason": "OutOfMemoryError: CUDA\n  out of memory"}
    running = {"state": "running", "started": run_folder.now(), "host": "node3", "pid": 9}
    lost = running | {"started": "2026-11-20T07:16:30+0000", "heartbeat": "2024-11-20T07:20:00+0000"}
    assert read_run(write(tmp_path / "a", status=failed, measured=False))[2:4] == (
        "failed",
        "OutOfMemoryError: CUDA out of memory",
    )
    assert read_run(write(tmp_path / "b", status=running, measured=False))[2:4] == (
        "running",
        f"since {running['started']}, process 9 on node3",
    )
    assert read_run(write(tmp_path / "e", status=lost, measured=False))[2] == "lost"
    for state in ("stopped", "queued"):
        found = read_run(write(tmp_path / state, status={"state": state, "reason": "asked"}, measured=False))
        assert found[2:4] == (state, "asked")
    assert read_run(write(tmp_path / "c", measured=False))[2:4] == ("finished", "no metrics.json")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.yaml").write_text("{}")
    assert read_run(tmp_path / "d")[2:4] == ("unknown", "no status.json, metrics.json")


# Comparing


def test_only_equal_protocols_share_a_table(tmp_path: Path) -> None:
    """Numbers of other faces, boxes or rules stand in one column, or 1 and 1.0 make two protocols."""
    write(tmp_path / "a", protocol={"box_scale": 1})
    write(tmp_path / "b", protocol={"box": "given", "truth": "fedc"})
    write(tmp_path / "c", protocol={"box_scale": 1.0})
    tables = compare(read_runs([tmp_path / "*"]), None)
    assert [[each.name for each in table.runs] for table in tables] == [["a", "c"], ["b"]]
    line = disagreement(tables)
    assert "truth (0123456789abcdef | fedc), box (points | given), box_scale (1 | 1.1)" in line
    assert "dataset" not in line
    assert disagreement(tables[:1]) == ""


def test_a_protocol_in_words() -> None:
    """The heading leaves out what makes the numbers what they are, such as an entry added later."""
    words = describe(PROTOCOL | {"flip_test": True, "rotation": 5})
    assert words.startswith("wflw98 test, 100 faces, wflw98, box: points x 1.1, flip test: yes, pose: estimated")
    assert "truth: 0123456789abcdef" in words and "evaluator: 1" in words and "rotation: 5" in words


def test_settings_in_which_runs_differ() -> None:
    """A value handed on is shown twice, a place on disk counts as a setting, or a difference is hidden."""
    other = changed(
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


def test_a_setting_that_parts_from_its_copies() -> None:
    """Two keys of the same values and other names are taken for copies, or a copy that was set apart is hidden."""
    first = changed(CONFIG, crop__size=16)
    both = changed(CONFIG, crop__size=32, datamodule__batch_size=32)
    assert settings_of(first, both).settings == ["crop.size", "datamodule.batch_size"]
    assert settings_of(CONFIG, changed(CONFIG, datamodule__seed=5)).settings == ["datamodule.seed"]


def test_settings_that_some_runs_lack() -> None:
    """An option typed for one run alone is hidden; a null, or the arguments of another class, fill the table."""
    assert settings_of(CONFIG, changed(CONFIG, trainer__gradient_clip_val=None)).settings == []
    assert settings_of(CONFIG, changed(CONFIG, trainer__gradient_clip_val=1.0)).settings == [
        "trainer.gradient_clip_val"
    ]
    assert settings_of(CONFIG, changed(CONFIG, backbone__weights="a.pth")).settings == ["backbone.weights"]
    other = changed(CONFIG, backbone={"_target_": "facelab.networks.hrnet.Trunk", "width": 18})
    assert settings_of(CONFIG, other).settings == ["backbone._target_"]
    blur = {"_target_": "albumentations.GaussianBlur", "p": 0.3}
    table = settings_of(CONFIG, changed(CONFIG, augment__pixels=[blur]))
    assert table.settings == ["augment.pixels"]
    assert sorted(setting(each, "augment.pixels") for each in table.runs) == ["[GaussianBlur]", "[]"]
    assert settings_of(
        changed(CONFIG, augment__pixels=[blur]), changed(CONFIG, augment__pixels=[blur | {"p": 0.5}])
    ).settings == ["augment.pixels[0].p"]


def test_the_recipe_of_a_method_is_named_below() -> None:
    """A sweep over methods has a column for each of their dozens of values, or one changed by hand is hidden there."""
    pfld = changed(
        CONFIG, model={"_target_": "lightning_modules.pfld.PFLD"}, crop__size=112, trainer__max_epochs=100, seed=1
    )
    table = settings_of(CONFIG, pfld)
    assert table.settings == ["model._target_", "trainer.max_epochs"] and table.recipe == ["crop.size"]
    assert build_cells(table)[0][1].text == "model" and {row[1].text for row in build_cells(table)[1:]} == {
        "PIPNet",
        "PFLD",
    }
    by_hand = changed(CONFIG, crop__size=128)
    assert "crop.size" in settings_of(CONFIG, pfld, by_hand).settings


def test_runs_are_sorted_by_nme_box() -> None:
    """Sorted as text or by name; an undefined or infinite number wins, or one of a run that has not ended."""
    values = {"d": math.nan, "c": math.inf, "b": 0.1, "a": 0.09}
    runs = [run(name, nme_box=(value, 0, 1)) for name, value in values.items()]
    runs += [run("killed", state="running", nme_box=(0.02, 0, 1))]
    assert [each.name for each in compare(runs, None)[0].runs] == ["a", "b", "c", "d", "killed"]


def test_best_is_outside_the_noise_of_all_others() -> None:
    """The lowest number is bold though another's interval meets its own, or the higher AUC counts as the worse."""
    a, b, c = (row(name, nme_box=ends) for name, ends in {"a": (4, 3, 5), "b": (6, 5.1, 7), "c": (6, 5, 7)}.items())
    assert best([a, b], "nme_box") is a and best([b, a], "nme_box") is a
    assert best([a, b, c], "nme_box") is None and best([a], "nme_box") is None
    low, high = row("low", auc08_ioc=(0.4, 0.3, 0.45)), row("high", auc08_ioc=(0.6, 0.5, 0.7))
    assert best([low, high], "auc08_ioc") is high
    same = [row(name, fr08_ioc=(1, 1, 1)) for name in "ab"]
    assert best(same, "fr08_ioc") is None


def test_best_needs_an_end_and_known_noise() -> None:
    """A run that has failed wins; a number without an interval is bold as if it were sure."""
    a, b = row("a", nme_box=(4, 3, 5)), row("b", nme_box=(7, 6, 8))
    failed = row("d", state="failed", nme_box=(1, 0.5, 2))
    assert best([failed, a, b], "nme_box") is a
    assert best([a, b._replace(intervals={})], "nme_box") is None
    assert best([a._replace(intervals={"nme_box": (math.nan, math.nan)}), b], "nme_box") is None
    assert best([row("a", loss=(1, 0, 2)), row("b", loss=(9, 8, 10))], "loss") is None


# Seeds


def test_runs_that_differ_in_the_seed_alone_are_one_row() -> None:
    """Runs of other settings are averaged; a seed that was set apart, or a repeated one, passes for another draw."""
    table = compare([*seeds("a", 0.04, 0.05, 0.06), *seeds("b", 0.03)], None)[0]
    assert [(each.name, len(each.runs)) for each in table.rows] == [("b-s1", 1), ("a (3 seeds)", 3)]
    mean = table.rows[1]
    assert mean.metrics["nme_box"] == pytest.approx(0.05) and mean.deviations["nme_box"] == pytest.approx(0.01)
    assert mean.intervals["nme_box"] == pytest.approx((0.049, 0.051))
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


def of_seeds(*changes: dict[str, Any]) -> Table:
    """The table of runs of seeds 1, 2, ... with these changes of one configuration."""
    configs = [
        changed(CONFIG, seed=seed, datamodule__seed=seed, **values) for seed, values in enumerate(changes, start=1)
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
def test_what_changes_a_number_is_no_seed(values: dict[str, Any]) -> None:
    """A mean over seeds of which one averaged its weights, or was trained in another way, with a wrong deviation."""
    table = of_seeds({}, values)
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
def test_what_changes_no_number_splits_no_seeds(values: dict[str, Any]) -> None:
    """Seeds that stand apart since one was trained with more workers, or with other pictures."""
    table = of_seeds({}, values)
    assert [len(each.runs) for each in table.rows] == [2] and table.settings == ["seed"]


def test_seed_of_the_data_that_is_that_of_one_run_by_chance() -> None:
    """The run of seed 2 stands apart where the data have the seed 2 in all runs; or other data count as a seed."""
    assert [len(each.runs) for each in of_seeds(*[{"data__seed": 2}] * 3).rows] == [3]
    assert [len(each.runs) for each in of_seeds({"data__seed": 1}, {"data__seed": 2}).rows] == [2]
    assert [len(each.runs) for each in of_seeds({"data__seed": 2}, {"data__seed": 1}).rows] == [1, 1]


def test_evaluations_of_seeds_are_one_row() -> None:
    """The folder of the run that was evaluated counts as a setting, so its seeds never meet; or its checkpoint not."""
    a, b = (each._replace(config=each.config | {"evaluate.ckpt": f"logs/{each.name}"}) for each in seeds("a", 1, 2))
    assert [each.name for each in rows_of([a, b])] == ["a (2 seeds)"]
    best_one = b._replace(config=b.config | {"evaluate.ckpt": "logs/b/checkpoints/best.ckpt"})
    assert len(rows_of([a, best_one])) == 2


def test_a_mean_is_best_only_beyond_the_deviation_of_its_seeds() -> None:
    """A lead that another seed would turn round is bold, since each run alone is sure of its faces."""
    close = [row_of(seeds("a", 0.040, 0.050)), row_of(seeds("b", 0.046, 0.056))]
    assert best(close, "nme_box") is None
    alone = row("c", nme_box=(0.0445, 0.044, 0.045))
    assert best([close[1], alone], "nme_box") is None  # 0.0065 ahead of 0.051, and that is what seeds do
    clear = [row_of(seeds("a", 0.040, 0.042)), row_of(seeds("b", 0.048, 0.050))]
    assert best(clear, "nme_box") is clear[0]
    unsure = [each._replace(intervals={"nme_box": (0.03, 0.06)}) for each in clear]
    assert best(unsure, "nme_box") is None
    assert best([each._replace(intervals={}) for each in clear], "nme_box").name == "a (2 seeds)"  # type: ignore[union-attr]


def test_infinite_seeds_have_no_deviation() -> None:
    """One run that leaves a point out ends the comparison with an error."""
    mean = row_of(seeds("a", 0.04, math.inf))
    assert mean.metrics["nme_box"] == math.inf and math.isnan(mean.deviations["nme_box"])


# What papers report


def test_a_paper_stands_only_beside_its_own_test_set() -> None:
    """A published number is shown beside another split, part or layout, another backbone or another metric."""
    official = PROTOCOL | {"faces": 2500}
    config = {MODEL: "lightning_modules.pipnet.PIPNet", "backbone.name": "resnet18"}

    def shown(metric: str, protocol: dict[str, Any], **settings: Any) -> float:
        one = run("a", nme_ioc=(0.05, 0.04, 0.06))._replace(protocol=protocol, config=config | settings)
        table = compare([one], None)[0]
        return paper_value(table, table.rows[0], metric)

    assert shown("nme_ioc", official) == 0.0457
    for entry in ({"split": "val"}, {"faces": 2499}, {"dataset": "mine"}, {"layout": "ibug68"}):
        assert math.isnan(shown("nme_ioc", official | entry))
    assert math.isnan(shown("nme_box", official))
    assert math.isnan(shown("nme_ioc", official, **{"backbone.name": "resnet10t"}))
    assert shown("nme_ioc_tag_pose", official, **{MODEL: "lightning_modules.hrnet.HRNet"}) == 0.0786


def test_published_numbers_are_fractions_with_a_source() -> None:
    """A number typed in percent, twice, or without the place it can be looked up."""
    with published.FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(0 < float(each["value"]) < 1 and each["source"] and each["faces"].isdecimal() for each in rows)
    keys = [tuple(each[key] for key in ("dataset", "split", "method", "backbone", "metric")) for each in rows]
    assert len({*keys}) == len(keys)


def test_the_names_of_official_test_sets_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a published set whose name no user finds, and one that is told and not there."""
    sets = published.official_sets()
    assert sets["300w68"] == "test, 689 faces, layout ibug68"
    assert OverridesParser.create().parse_override("data.name=300w68").value() == "300w68"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("sys.argv", ["compare.py", "--help"])
        parse()
    helped = " ".join(capsys.readouterr().out.split())
    docs, header = (ROOT / "docs" / "comparing.md").read_text(), (ROOT / "conf" / "data" / "folder.yaml").read_text()
    for name, what in sets.items():
        faces = what.split()[1]
        assert f"{name} ({what})" in helped
        assert re.search(rf"\| `{name}`.*\| {int(faces.replace(',', '')):,} \|", docs)
        assert (ROOT / "conf" / "data" / f"{name}.yaml").is_file() or f"data.name={name} ({faces} faces" in header


# Cost


def test_costs_are_read(tmp_path: Path) -> None:
    """Counted MACs or a measured latency are shown under another unit, or an older run without them is refused."""
    folder = write(tmp_path / "sweep" / "0")
    old = write(tmp_path / "sweep" / "1", config=changed(CONFIG, backbone__name="x"))
    results = json.loads((folder / "metrics.json").read_text())
    results["cost"] = {"params": 2_000_000, "macs": 580_000_000, "flops": 1_160_000_000}
    (folder / "metrics.json").write_text(json.dumps(results))
    (folder / "benchmark.json").write_text(json.dumps({"latency_p50_ms": 12.34, "cpu": "EPYC", "threads": 1}))
    rows = build_cells(compare([read_run(folder), read_run(old)], ["nme_box"])[0])
    assert [cell.text for cell in rows[0][-3:]] == ["params M", "MACs M", "latency ms"]
    assert {tuple(cell.text for cell in row[-3:]) for row in rows[1:]} == {("2.00", "580.0", "12.3"), ("-", "-", "-")}
    (folder / "benchmark.json").write_text("{")
    assert read_run(folder).state == "unreadable"


def test_costs_with_pose_stand_apart(tmp_path: Path) -> None:
    """What landmarks and pose cost together is taken for the landmarks, or put in the place of what these cost."""
    alone = {"params": 9_000, "macs": 8_060_000, "latency_p50_ms": 1.5, "cpu": "EPYC"}
    both = {"params": 10_000, "macs": 9_140_000, "latency_p50_ms": 2.5, "cpu": "EPYC", "pose": True}
    for name, size, files in (
        ("a", 1, (alone, both)),
        ("b", 2, (None, both)),
        ("c", 3, (alone | {"pose": False}, None)),
    ):
        folder = write(tmp_path / "sweep" / name, config=changed(CONFIG, crop__size=size))
        for file, content in zip(("benchmark.json", "benchmark_pose.json"), files, strict=True):
            if content:
                (folder / file).write_text(json.dumps(content))
    runs = read_runs([f"{tmp_path}/sweep/*"])
    (table,) = compare(runs, ["nme_box"])
    heading, *rows = build_cells(table)
    names = ["params M", "MACs M", "latency ms"]
    assert [cell.text for cell in heading[-6:]] == [*names, *(f"with pose: {name}" for name in names)]
    usual, more, none = ["0.01", "8.1", "1.5"], ["0.01", "9.1", "2.5"], ["-"] * 3
    assert {row[0].text: [cell.text for cell in row[-6:]] for row in rows} == {
        "a": usual + more,
        "b": none + more,
        "c": usual + none,
    }
    assert not any("different machines" in line for line in remarks(table))
    write_csv(tmp_path / "all.csv", runs, [table])
    with (tmp_path / "all.csv").open() as file:
        found = {row["run"]: (row["macs"], row["pose_macs"]) for row in csv.DictReader(file)}
    assert found == {"a": ("8060000.0", "9140000.0"), "b": ("", "9140000.0"), "c": ("8060000.0", "")}
    (tmp_path / "sweep" / "c" / "benchmark_pose.json").write_text(json.dumps(both | {"cpu": "Xeon"}))
    assert any("different machines" in line for line in remarks(*compare(read_runs([f"{tmp_path}/sweep/*"]), None)))


def test_faces_that_were_left_out_are_told(tmp_path: Path) -> None:
    """A number over fewer faces stands among the others without a word."""
    found = read_run(write(tmp_path / "a", metrics={"faces": 98.0, "faces_skipped": 2.0}))
    assert found.ranked and found.reason == "2 faces could not be measured"


def test_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    """A misspelt name gives a column of dashes; one that only some runs have is refused."""
    runs = [read_run(write(tmp_path / "a")), read_run(write(tmp_path / "b", metrics={"nme_ioc_tag_blur": 0.1}))]
    with pytest.raises(RunError, match="no run has a metric nme_bax; did you mean nme_box"):
        compare(runs, ["nme_bax"])
    assert compare(runs, ["nme_ioc_tag_blur", "nme_ipd"])[0].metrics == ["nme_ioc_tag_blur", "nme_ipd"]
    assert [row[1].text for row in build_cells(compare(runs, ["nme_ioc_tag_blur"])[0])[1:]] == ["-", "10.00"]


# Printing and writing


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two whole tests of one protocol, one of another, and three runs without numbers."""
    folder = tmp_path / "sweep"
    wide, near = {"nme_box": [0.05, 0.08]}, {"nme_box": [0.039, 0.041]}
    write(folder / "0", config=changed(CONFIG, crop__size=3), metrics={"nme_box": 0.06}, intervals=wide)
    write(folder / "1", metrics={"nme_box": 0.04012345678901234}, intervals=near)
    write(folder / "2", protocol={"flip_test": True})
    write(folder / "3", status={"state": "failed", "reason": "ValueError: a | b [c]"}, measured=False)
    write(folder / "4", status={"state": "running", "started": "now", "host": "h", "pid": 1}, measured=False)
    write(folder / "5")
    (folder / "5" / "metrics.json").write_text("{")
    return folder


def test_the_terminal_shows_every_run(sweep: Path) -> None:
    """A run is left out, a number is cut, or a fraction is shown as percent."""
    result = door(sweep)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    place = [next(i for i, line in enumerate(lines) if f"sweep/{job} " in line) for job in (1, 0, 2, 3, 4, 5)]
    assert place == sorted(place)
    best_, second = lines[place[0]].split(), lines[place[1]].split()
    assert best_ == ["sweep/1", "256", "5.00", "4.01", "10.00", "50.00", "3.00"] and second[1:4] == [
        "3",
        "5.00",
        "6.00",
    ]
    assert "3.90..4.10" in lines[place[0] + 1]
    for text in (
        "Table 1: wflw98 test, 100 faces, wflw98, box: points x 1.1, flip test: no, pose: estimated",
        "protocols differ in flip_test (no | yes)",
        "ValueError: a | b [c]",
        "process 1 on h: no heartbeat, 'now' is not a time",
        "unreadable",
    ):
        assert text in result.stdout


def test_a_narrow_window_cuts_no_number(sweep: Path) -> None:
    """Columns are squeezed until digits fall off or break to the next line."""
    result = door(sweep, FORCE_COLOR="1", COLUMNS="40")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)
    assert "3.90..4.10" in shown and "…" not in shown
    assert re.search(r"sweep/1 +256 +5\.00 +4\.01 +10\.00 +50\.00 +3\.00", shown)


def test_csv_holds_full_fractions(sweep: Path, tmp_path: Path) -> None:
    """Rounded or percent numbers in a file that others compute with; a run, an interval or the protocol is missing."""
    file = tmp_path / "new" / "runs.csv"
    result = door(sweep, "--csv", file, "--metrics", "nme_box", "faces")
    assert result.returncode == 0, result.stderr
    with file.open(newline="") as stream:
        rows = {row["run"]: row for row in csv.DictReader(stream)}
    assert list(rows) == [f"sweep/{job}" for job in (1, 0, 2, 3, 4, 5)]
    first = rows["sweep/1"]
    assert first["nme_box"] == "0.04012345678901234" and first["faces"] == "100.0"
    assert (first["nme_box_low"], first["nme_box_high"], first["nme_box_faces"]) == ("0.039", "0.041", "100")
    assert (first["table"], first["config.crop.size"], first["protocol.flip_test"]) == ("1", "256", "False")
    assert rows["sweep/2"]["protocol.flip_test"] == "True" and rows["sweep/2"]["nme_box_low"] == ""
    assert first["runs"] == "1" and "nme_box_sd" not in first and "nme_box_paper" not in first
    assert (rows["sweep/3"]["state"], rows["sweep/3"]["reason"]) == ("failed", "ValueError: a | b [c]")
    assert rows["sweep/3"]["nme_box"] == rows["sweep/3"]["protocol.dataset"] == ""
    assert sorted(path.name for path in file.parent.iterdir()) == ["runs.csv"]


def test_markdown_is_a_table(sweep: Path, tmp_path: Path) -> None:
    """A bar in a reason adds a column; the best is not marked, or one within the noise is."""
    file = tmp_path / "runs.md"
    assert door(sweep, "--markdown", file, "--metrics", "nme_box", "nme_box_yaw_0_30").returncode == 0
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
    ],
)
def test_mistakes_end_with_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    """A traceback, or an error that a script takes for success."""
    write(tmp_path / "0")
    result = door(*(tmp_path / word if word in (".", "nowhere") else word for word in words))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert message in result.stderr


def test_nothing_heavy_is_imported() -> None:
    """A comparison waits seconds for torch, or needs a machine on which it works."""
    code = "import sys, compare; print({'torch', 'lightning', 'hydra', 'numpy', 'rich'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
    assert "--markdown FILE" in door("--help").stdout


def test_seeds_in_the_files(tmp_path: Path) -> None:
    """The mean of seeds is not in the files, stands without its deviation, or takes the place of its runs."""
    for seed, value in ((1, 0.04), (2, 0.05)):
        config = changed(CONFIG, seed=seed, datamodule__seed=seed)
        write(tmp_path / "sweep" / str(seed), config=config, metrics={"nme_box": value})
    assert door(tmp_path / "sweep", "--csv", tmp_path / "a.csv", "--markdown", tmp_path / "a.md").returncode == 0
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
    each = door(tmp_path / "sweep", "--each").stdout
    assert "± 0.71" in each and "sweep/2 " in each


# Two runs


def test_a_pair_is_compared_on_its_common_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of the split are paired, though one run left out a photo; the sign is turned; faces are not counted."""
    a, b = (write(tmp_path / "runs" / name) for name in ("first", "second"))
    photos = [f"{i // 2}.jpg" for i in range(40)]
    errors = [0.03 + 0.001 * i for i in range(40)]
    write_faces(a, errors, photos)
    write_faces(b, [error + 0.01 for error in errors[2:]], photos[2:])  # without the first photo
    pair = pairs.compare_pair(read_run(a), read_run(b))
    assert (pair.common, pair.faces) == (38, (40, 38))
    assert pair.differences["nme_box"][:3] == pytest.approx((-0.01, -0.01, -0.01))
    opened(monkeypatch, tmp_path / "runs" / "*", "--pair", "first", "second")
    shown = capsys.readouterr().out
    assert re.search(r"nme_box +-1\.00 +-1\.00\.\.-1\.00 +0\.002 +38", shown)
    assert "38 common faces (of 40 and 38)" in shown
    write_faces(b, errors, photos, size=90)  # other true points under the same names
    with pytest.raises(SystemExit, match="no common face"):
        opened(monkeypatch, tmp_path / "runs" / "*", "--pair", "first", "second")


def test_a_pair_must_be_named_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs are compared that were not meant."""
    for name in ("mbv2-s1", "mbv2-s2"):
        write(tmp_path / name)
    for words, message in (
        (("mbv2", "s1"), "several runs"),
        (("s3", "s1"), "matches no run"),
        (("s1", "s2"), "faces.csv"),
    ):
        with pytest.raises(SystemExit, match=message):
            opened(monkeypatch, f"{tmp_path}/*", "--pair", *words)


def test_cells_that_no_setting_tells_apart() -> None:
    """Rows of one table that look alike: a part that is null in one run and of two classes in the others."""
    chosen: dict[str, dict[str, Any]] = {
        "pose=none": {"pose": None},
        "pose=one": {"pose._target_": "a.A"},
        "pose=two": {"pose._target_": "a.B"},
    }
    cells = [
        run(f"sweep/{number}", nme_box=(0.1 + number, 0.1, 2.0))._replace(
            config={"seed": 1, "model._target_": "a.PFLD"} | config, typed=("experiment=x", typed)
        )
        for number, (typed, config) in enumerate(chosen.items())
    ]
    (table,) = compare(cells, ["nme_box"])
    assert [line[1].text for line in build_cells(table)] == ["typed", "pose=none", "pose=one", "pose=two"]
    assert labels_of(table) == ["pose=none", "pose=one", "pose=two"]
    more = [
        each._replace(folder=Path(f"more/{each.name}"), config=each.config | {"seed": 2}, typed=(*each.typed, "seed=2"))
        for each in cells
    ]
    assert labels_of(*compare([*cells, *more], ["nme_box"])) == [f"{each} (2 seeds)" for each in chosen]
    told = [
        each._replace(config=each.config | {"crop.size": size}) for each, size in zip(cells, (1, 2, 3), strict=True)
    ]
    assert [cell.text for cell in build_cells(*compare(told, ["nme_box"]))[0]] == ["run", "crop.size", "nme_box"]


def test_angles_are_shown_in_degrees() -> None:
    """Degrees times a hundred, under a heading of percents."""
    (table,) = compare([run("a", mae_angle=(5.0, 4.0, 6.5))], None)
    assert [cell.text for cell in build_cells(table)[1]] == ["a", "5.00"]
    assert build_cells(table)[1][1].below == "4.00..6.50"
    assert any("degrees" in line for line in remarks(table))
