"""Tests of the user's folders of configuration files: a resume uses them, and they cannot start programs."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from composing import compose_config, small
from conftest import PLAIN, open_door
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from facelab.errors import RunError
from facelab.files import read_json
from facelab.runs.build import write_rerun
from facelab.runs.overrides import saved_overrides
from facelab.runs.processes import RESUMED_WORDS, SEARCH_PATH, search_path
from facelab.runs.search_path import check_environment, check_hydra, remembered

RECIPE = "# @package _global_\ndefaults: [override /scheduler: none]\noptimizer: {lr: 0.002}\n"
WORDS = (*small("pipnet"), *PLAIN, "experiment=mine", "++trainer.max_epochs=1", "test=false")


def write_recipe(folder: Path, text: str = RECIPE, name: str = "mine") -> None:
    """Write an experiment into a folder of configuration files."""
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(text)


def load(path: Path) -> Any:
    return OmegaConf.load(path)


def test_resume_uses_the_remembered_folder(tmp_path: Path) -> None:
    """Would catch a folder that is recorded relative to the working folder, or that a resume neither uses nor keeps."""
    write_recipe(tmp_path / "mine")
    open_door("train", "--config-dir=mine", *WORDS, "hydra.run.dir=run", folder=tmp_path)
    run = tmp_path / "run"
    assert yaml.safe_load((run / "overrides.yaml").read_text())[0] == f'{SEARCH_PATH}=["{tmp_path}/mine"]'
    assert saved_overrides(run / "overrides.yaml") == list(WORDS)
    (tmp_path / "elsewhere").mkdir()
    open_door("train", f"resume={run}", "trainer.max_epochs=2", folder=tmp_path / "elsewhere")
    assert (load(run / "config.yaml").optimizer.lr, load(run / "config.yaml").trainer.max_epochs) == (0.002, 2)
    assert yaml.safe_load((run / "overrides.yaml").read_text())[0] == f'{SEARCH_PATH}=["{tmp_path}/mine"]'
    (tmp_path / "mine").rename(tmp_path / "moved")
    with pytest.raises(SystemExit, match=r"overrides\.yaml: .*/mine does not exist; type --config-dir FOLDER"):
        open_door("train", "resume=run", folder=tmp_path)
    open_door("train", "--config-dir", "moved", "resume=run", "trainer.max_epochs=3", folder=tmp_path)
    assert yaml.safe_load((run / "overrides.yaml").read_text())[0] == f'{SEARCH_PATH}=["{tmp_path}/moved"]'


def test_resumed_sweep_uses_the_remembered_folder(tmp_path: Path) -> None:
    """Would catch jobs that are composed without the folder, or with Hydra settings of a file in it."""
    write_recipe(tmp_path / "mine")
    sweep = tmp_path / "sweep"
    words = [
        "model=pfld",
        "data=lapa106",
        "data.root=../gone,../away",
        "logger=none",
        "experiment=mine",
        f"{SEARCH_PATH}=[mine]",
    ]
    with pytest.raises(SystemExit, match="2 of 2 jobs are not finished"):  # there is no such dataset
        open_door("train", "-m", *words, "hydra.sweep.dir=sweep", folder=tmp_path)
    assert read_json(sweep / "sweep.json")[SEARCH_PATH] == [f'{SEARCH_PATH}=["{tmp_path}/mine"]']
    write_recipe(tmp_path / "mine", RECIPE.replace("0.002", "0.003"))
    with pytest.raises(SystemExit, match="2 of 2 jobs are not finished"):
        open_door("train", "-m", "resume=sweep", folder=tmp_path)
    assert [load(sweep / number / "config.yaml").optimizer.lr for number in "01"] == [0.003, 0.003]
    assert len(read_json(sweep / "0" / "environment.json")["resumed"]) == 1
    write_recipe(tmp_path / "mine", RECIPE + "hydra: {callbacks: {x: {_target_: os.system}}}\n", "hostile")
    with (sweep / "1" / "overrides.yaml").open("a") as file:  # of the second job: that of the first composes the sweep
        file.write("- experiment=hostile\n")
    with pytest.raises(SystemExit, match=r"change hydra\.callbacks, by which Hydra can start programs"):
        open_door("train", "-m", "resume=sweep", folder=tmp_path)
    assert len(read_json(sweep / "0" / "environment.json")["resumed"]) == 1, "a job was started"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("hydra: {callbacks: {x: {_target_: os.system}}}", "callbacks"),
        ("hydra: {job_logging: {handlers: {x: {(): os.system}}}}", "job_logging"),
        ("hydra: {job: {env_set: {LD_PRELOAD: x}}}", "job"),
        ("hydra: {launcher: {_target_: os.system}}", "launcher"),
        ("hydra: {sweeper: {_target_: os.system}}", "sweeper"),
        ('"\\x68ydra": {output_subdir: elsewhere}', "output_subdir"),
        ("defaults: [override /hydra/launcher: mine]", "launcher"),
    ],
)
def test_check_hydra_refuses_remembered_files_that_steer_hydra(
    text: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a received run that names a folder whose files start a program, or own files that are refused."""
    write_recipe(tmp_path, f"# @package _global_\n{text}\n")
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "hydra" / "launcher" / "mine.yaml").write_text("_target_: os.system\n")
    words = [f"{SEARCH_PATH}=[{tmp_path}]", "experiment=mine", "hydra.run.dir=x", "hydra/job_logging=none"]
    monkeypatch.setenv(RESUMED_WORDS, "[]")
    with pytest.raises(RunError, match=rf"change hydra\.{key}, .* type --config-dir FOLDER"):
        check_hydra(words)
    for typed in (["--config-dir", str(tmp_path)], [words[0]]):
        monkeypatch.setenv(RESUMED_WORDS, json.dumps(typed))
        check_hydra(words)
    monkeypatch.setenv(RESUMED_WORDS, "[]")
    write_recipe(tmp_path, RECIPE + "hydra: {sweeper: {params: {seed: '1,2'}}}\n")
    check_hydra(words)
    with pytest.raises(RunError, match="experiment/gone"):
        check_hydra([*words, "experiment=gone"])


def test_check_environment_refuses_remembered_files_that_read_it(tmp_path: Path) -> None:
    """Would catch a secret of this machine in the config.yaml of a received run, or own files that are refused."""
    cfg = compose_config(["model=pfld"])
    check_environment(cfg, [], tmp_path)
    for place, key in ((cfg, "init"), (cfg.paths, "name"), (cfg.augment, "pixels")):
        before = OmegaConf.to_container(cfg, resolve=False)
        with open_dict(cfg):
            place[key] = ["${oc.env:HOME}"] if key == "pixels" else "x-${oc.env:HOME}"
        with pytest.raises(RunError, match=r"HOME\} reads the environment; .* type --config-dir FOLDER"):
            check_environment(cfg, [], tmp_path)
        check_environment(cfg, [f"--config-dir={tmp_path}"], tmp_path)
        check_environment(cfg, [{"init": "init=x", "name": "paths.name=x", "pixels": "augment=x"}[key]], tmp_path)
        place[key] = OmegaConf.select(OmegaConf.create(before), key if place is cfg else f"{place._key()}.{key}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("text", "not an override"),
        ([3], "not an override"),
        (["seed=1"], "not an override"),
        ([f"{SEARCH_PATH}=[a"], "cannot be read"),
        ([f"{SEARCH_PATH}=[pkg://antigravity]"], "'pkg://antigravity' is not used without asking; type"),
        ([f"{SEARCH_PATH}=[relative]"], "not used without asking"),
        ([f"{SEARCH_PATH}=[3]"], "not used without asking"),
        ([f"{SEARCH_PATH}=null"], "not used without asking"),
        ([f"{SEARCH_PATH}=[/does/not/exist]"], "/does/not/exist does not exist"),
    ],
)
def test_remembered_refuses_what_no_run_wrote(words: Any, message: str) -> None:
    """Would catch a traceback, or a package that is imported because a received folder names it."""
    with pytest.raises(RunError, match=f"^sweep.json.*{message}"):
        remembered(words, [], Path("sweep.json"))
    assert remembered(words, ["-cd", "mine"], Path("sweep.json")) == []
    assert remembered(words, [f"{SEARCH_PATH}=[mine]"], Path("sweep.json")) == []


def test_search_path_contains_only_folders_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the project's own folder or Hydra's, which a run on another machine does not have."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it's, [mine]").mkdir()
    compose_config(["model=pfld"])
    assert search_path(HydraConfig.get()) == []
    compose_config(["model=pfld", f"{SEARCH_PATH}=['it\\'s, [mine]','pkg://facelab']"])
    (word,) = search_path(HydraConfig.get())
    assert remembered([word.replace(',"pkg://facelab"', "")], [], Path()) == [
        f'{SEARCH_PATH}=["{tmp_path}/it\'s, [mine]"]'
    ]


# Another run with the configuration of a run


def test_rerun_repeats_a_run_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """Would catch a rerun that opens or changes the first run, trains another network, or loses a reference."""
    words = [*small("pfld"), *PLAIN, "trainer.max_epochs=1", "optimizer.lr=0.002"]
    open_door("train", *words, "hydra.run.dir=first", folder=tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "first").rglob("*.*") if path.is_file()}
    rerun = ("--config-dir", "first", "--config-name", "rerun")
    open_door("train", *rerun, folder=tmp_path)
    second = tmp_path / "logs/train/runs/now_pfld-pfld-synthetic68-s1"  # the name of the first
    assert (second / "faces.csv").read_bytes() == (tmp_path / "first" / "faces.csv").read_bytes()
    assert str(tmp_path / "first") not in (second / "config.yaml").read_text()
    assert load(second / "config.yaml").paths.tags == ["pfld", "synthetic68", "pfld"]
    assert {path: path.read_bytes() for path in before} == before

    open_door("train", *rerun, "seed=2", "crop.size=96", "test=false", "hydra.run.dir=changed", folder=tmp_path)
    changed = load(tmp_path / "changed" / "config.yaml")
    assert (changed.model.head.size, changed.datamodule.seed, changed.optimizer.lr) == (96, 2, 0.002)
    assert changed.paths.name == "pfld-pfld-synthetic68-s2"
    with pytest.raises(SystemExit, match=r"type --config-dir .*/first --config-name=rerun too"):
        open_door("train", "resume=changed", "trainer.max_epochs=2", folder=tmp_path)
    open_door("train", *rerun, "resume=changed", "on_nan=skip", folder=tmp_path)
    assert read_json(tmp_path / "changed" / "environment.json")["resumed"]


def test_rerun_from_config_yaml_is_refused(tmp_path: Path) -> None:
    """Would catch a run that is continued in place of a rerun, because config.yaml names its folder."""
    (tmp_path / "config.yaml").write_text("task: train\n")
    for option in (["--config-name", "config"], ["-cn=config.yaml"], ["--config-na", "config"]):
        with pytest.raises(SystemExit, match=r"python train\.py --config-dir RUN --config-name=rerun"):
            open_door("train", "--config-dir", ".", *option, folder=tmp_path)


def test_write_rerun_trusts_nobody(tmp_path: Path) -> None:
    """Would catch a folder whose rerun runs the code of a package that nobody named."""
    cfg = compose_config(["model=pfld", "trust=[pace]", "init=x"])
    write_rerun(tmp_path, cfg)
    written = load(tmp_path / "rerun.yaml")
    assert (written.trust, written.init) == ([], "x")
    assert OmegaConf.to_container(written)["model"]["backbone"] == "${backbone}"


@pytest.mark.parametrize(
    "text",
    ["seed: ${oc.env:FACELAB_TEST_SECRET}", "data: {name: '${oc.env:FACELAB_TEST_SECRET}'}", "paths: {run: elsewhere}"],
)
def test_resume_starts_nothing_with_files_that_reach_out(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a received folder that gets a secret into its files, or a run written into another folder."""
    monkeypatch.setenv("FACELAB_TEST_SECRET", "hunter2")
    write_recipe(tmp_path / "mine")
    open_door("train", "--config-dir=mine", *WORDS, "hydra.run.dir=run", folder=tmp_path)
    write_recipe(tmp_path / "mine", f"{RECIPE}{text}\n")
    with pytest.raises(SystemExit, match=r"reads the environment|is another folder"):
        open_door("train", "resume=run", "trainer.max_epochs=2", folder=tmp_path)
    assert not (tmp_path / "elsewhere").exists()
    texts = [file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert not any(b"hunter2" in text for text in texts)


def test_resume_refuses_a_saved_folder(tmp_path: Path) -> None:
    """Would catch overrides of a received folder that write a run, and delete its results, somewhere else."""
    write_recipe(tmp_path / "mine")
    open_door("train", "--config-dir=mine", *WORDS, "hydra.run.dir=run", folder=tmp_path)
    with (tmp_path / "run" / "overrides.yaml").open("a") as file:
        file.write(f"- paths.run={tmp_path}/elsewhere\n")
    with pytest.raises(SystemExit, match=r"paths\.run=.*elsewhere is another folder"):
        open_door("train", "resume=run", "trainer.max_epochs=2", folder=tmp_path)
    assert not (tmp_path / "elsewhere").exists()
