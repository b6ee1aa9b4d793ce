"""Tests of the order and the quoting of command line arguments."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from facelab.errors import ConfigError
from facelab.runs.argv import as_typed, normalise_argv, overrides_of, quoted, take_supplements, unquoted
from facelab.runs.checkpoint import parse_supplements


@pytest.mark.parametrize(
    ("typed", "sorted_"),
    [
        ("model=pipnet data=lapa106 -m backbone=a,b", "-m model=pipnet data=lapa106 backbone=a,b"),
        ("a=1 --multirun", "--multirun a=1"),
        ("a=1 --cfg job b=2 --resolve c=3", "--cfg job --resolve a=1 b=2 c=3"),
        ("a=1 -c job -p data b=2", "-c job -p data a=1 b=2"),
        ("a=1 --config-name=other b=2", "--config-name=other a=1 b=2"),
        ("a=1 -cn other +b=2 ~c", "-cn other a=1 +b=2 ~c"),
        ("a=1 --config-d /etc/conf b=2", "--config-d /etc/conf a=1 b=2"),
        ("--info a=1", "--info=all a=1"),
        ("a=1 -i ~b", "--info=all a=1 ~b"),
        ("a=1 --info -- b=2", "--info=all -- a=1 b=2"),
        ("a=1 --info", "--info=all a=1"),
        ("a=1 --info defaults-tree b=2", "--info defaults-tree a=1 b=2"),
        ("a=1 -sc query=bash", "-sc a=1 query=bash"),
        ("a=1 -m -- -b=2 --cfg", "-m -- a=1 -b=2 --cfg"),
        ("a=1 --cfg", "--cfg a=1"),
        ("--optimizer.lr=0.1 --seed=2 --cfg=job", "--cfg=job optimizer.lr=0.1 seed=2"),
        ("--config-n=other --+a.b=1 -m", "--config-n=other -m +a.b=1"),
        ("", ""),
    ],
)
def test_normalise_argv_moves_options_first(typed: str, sorted_: str) -> None:
    """Would catch an option that loses its value or takes an override for it, or overrides in another order."""
    assert normalise_argv(typed.split()) == sorted_.split()


def test_normalise_argv_keeps_a_normalised_line() -> None:
    """Would catch an argument that moves when a child process, which receives the line with additions, sorts again."""
    once = normalise_argv(["a=1", "-m", "b=1,2", "--info", "c=3", "--cfg", "job"])
    assert normalise_argv([*once, "hydra.run.dir=x"]) == [*once, "hydra.run.dir=x"]


@pytest.mark.parametrize(
    ("typed", "overrides"),
    [
        ("model=pipnet data=lapa106 -m backbone=a,b", "model=pipnet data=lapa106 backbone=a,b"),
        ("a=1 --cfg job -p data b=2", "a=1 b=2"),
        ("-cd there a=1 --config-name=other", "a=1"),
        ("a=1 -- -b=2", "a=1 -b=2"),
        ("-m", ""),
        ("~a", "~a"),
    ],
)
def test_overrides_of_omits_options_and_their_values(typed: str, overrides: str) -> None:
    """Would catch the value of an option taken for an override, or an override that is omitted."""
    assert overrides_of(normalise_argv(typed.split())) == overrides.split()


@pytest.mark.parametrize(
    "text",
    ["", "a", "it's", 'the "best"', 'it\'s "both"', "a\\", "a'\\", "'a'", "/a/b=c(d), [e] {f} über#~!", "300", "null"],
)
def test_quoted_text_is_parsed_unchanged(text: str) -> None:
    """Would catch a name with quotes or backslashes that Hydra parses as another name or as a number."""
    assert OverridesParser.create().parse_override(f"a={quoted(text)}").value() == text
    assert unquoted(quoted(text)) == text
    (word,) = shlex.split(as_typed("a", text))
    assert word == f"a={quoted(text)}"


@pytest.mark.parametrize("text", ["", "/a/b=c (d)", "it's", "'a' and 'b'", "'a", '"', "[1,2]", "300"])
def test_unquoted_keeps_text_without_quotes(text: str) -> None:
    """Would catch another folder name for a path that is typed without quotes."""
    assert unquoted(text) == text


APP = """
import sys
from pathlib import Path
import hydra
from facelab.runs.argv import normalise_argv

@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg):
    print("ran", cfg.model.name, cfg.data, cfg.backbone, cfg.epochs)

sys.argv[1:] = normalise_argv(sys.argv[1:])
main()
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small Hydra application with a config group."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "train.yaml").write_text(
        "defaults: [_self_, {model: pfld}]\ndata: none\nbackbone: none\nepochs: 60\n"
    )
    for name in ("pfld", "pipnet"):
        (folder / "conf" / "model" / f"{name}.yaml").write_text(f"name: {name}\n")
    (folder / "app.py").write_text(APP)
    return folder


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (
            "model=pipnet data=lapa106 -m backbone=mbv2,resnet18 epochs=1",
            ["ran pipnet lapa106 mbv2 1", "ran pipnet lapa106 resnet18 1"],
        ),
        ("backbone=a,b -m hydra.run.dir=out hydra.job.name=app_ddp_process_1", ["ran pfld none a 60"]),
        ("model=pipnet --cfg job epochs=2", ["name: pipnet", "epochs: 2"]),
        ("model=pipnet --info config epochs=2", ["Config", "name: pipnet"]),
        ("model=pipnet --info", ["Installed Hydra Plugins"]),
    ],
    ids=["overrides on both sides", "appended by DDP", "cfg in the middle", "info with value", "info alone"],
)
def test_hydra_accepts_the_normalised_line(app: Path, typed: str, expected: list[str]) -> None:
    """Would catch a release of Hydra with other options, or a sorted line that it refuses."""
    command = [sys.executable, "app.py", *typed.split()]
    result = subprocess.run(command, cwd=app, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for text in expected:
        assert text in result.stdout


def test_take_supplements_leaves_what_belongs_to_the_script() -> None:
    """Would catch an option of the script that is taken for one of the run, or a value that Hydra reads otherwise."""
    others = ["-cd", "mine", "ckpt=+a.b=c", "+trainer.limit_test_batches=2", "+logger.csv.x=1", "model.width=1", "+x=1"]
    assert take_supplements(others) == others
    added = ["+model.name='a, b'", '+crop.sizes=["1",2]', "+backbone.x={y: null}"]
    *rest, word = take_supplements([*others[:3], *added, *others[3:]])
    assert rest == others
    override = OverridesParser.create().parse_override(word)
    assert override.key_or_group == "supplements"
    assert parse_supplements(override.value()) == {
        "model.name": "a, b",
        "crop.sizes": ["1", 2],
        "backbone.x": {"y": None},
    }


def test_take_supplements_refuses_two_ways_at_once() -> None:
    """Would catch a supplement that is dropped because the other way is read last."""
    with pytest.raises(ConfigError, match=r"supplements=\[model.a=1\]: type \+model.b=2 and all other"):
        take_supplements(["ckpt=RUN", "supplements=[model.a=1]", "+model.b=2"])
