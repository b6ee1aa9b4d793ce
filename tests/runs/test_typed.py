"""Tests of the check of a command line before Hydra parses it."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, open_door
from hydra.core.override_parser.overrides_parser import OverridesParser

from facelab.errors import FacelabError
from facelab.renames import renamed_key
from facelab.runs.argv import normalise_argv
from facelab.runs.typed import check_groups, check_typed

GROUPS = sorted(
    {str(path.parent.relative_to(ROOT / "conf")) for path in (ROOT / "conf").glob("*/**/*.yaml")} - {"hydra"}
)
SIDE_BY_SIDE = {"callbacks", "logger", "paths"}
"""Groups whose options are mappings that Hydra can merge."""
HARD_TO_QUOTE = [
    "/a/b=c(d)",
    "/a/b c,d",
    "/photos/José",
    "/写真/一",
    "it's",
    'the "best" ones',
    'it\'s "both"',
    "a'b\\",
    "/a/{b}",
    "[1,2",
    "[x] y",
    "{a",
    "/a/#1&2;3!<4>",
    "foo(3)",
    "int(x)",
    "a,b",
    "a, b",
    "x^y`z`",
    "a\tb (c)",
]


def message_of(*arguments: str, unread: str | None = None) -> str:
    """Return the error message for a command line; empty if it is accepted."""
    try:
        check_typed(normalise_argv(arguments), unread)
    except FacelabError as error:
        return str(error)
    return ""


def parsed(typed: str) -> object:
    """Return the value that Hydra reads from an override that is typed in a shell."""
    (word,) = shlex.split(typed)
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize(
    "line",
    [
        "model=pipnet data=lapa106 -m backbone=mbv2,resnet18",
        """crop.scale=[1.2,1.0] +a.b={c:1} ++d=null ~e ~f=3 'data.root="/a/b c"' 'data.name=a b'""",
        "-m 'optimizer.lr=interval(1,2)' 'seed=range(1,4)' hydra/sweeper=search 'data=glob(*)'",
        "-m 'experiment=choice(demo,pfld_small)'",
        "hydra.mode=MULTIRUN seed=1,2",
        "logger=[csv,wandb] callbacks=[default,ema] ~experiment hydra/launcher=slurm",
        "--help what is this",
        "--cfg job -p data data=lapa106",
        "-cd there data@here=lapa106 data.root='\\(a\\)'",
        "-m -- data=lapa106,wflw98",
        "'data.root=${paths.data}'/x/2026-11-20_07-17-00",
        "",
    ],
)
def test_check_typed_accepts_what_hydra_accepts(line: str) -> None:
    """Would catch a valid command line that is refused."""
    assert message_of(*shlex.split(line)) == ""


# Unreadable values


@pytest.mark.parametrize("text", HARD_TO_QUOTE)
@pytest.mark.parametrize("key", ["images", "+data.root"])
def test_check_typed_quotes_unreadable_values(key: str, text: str) -> None:
    """Would catch advice that the shell or Hydra reads as another value, or messages of Hydra's parser."""
    message = message_of("seed=1", f"{key}={text}")
    assert message.startswith(f"{key}={text} ")
    assert "mismatched" not in message and "LexerNoViableAlt" not in message
    advice = message.partition("typed: ")[2] or message.partition("one text: ")[2]
    assert advice.startswith(("'", key))
    assert parsed(advice) == text
    assert message_of(*shlex.split(advice)) == ""


def test_check_typed_lists_the_characters_to_quote() -> None:
    """Would catch advice without its reason."""
    assert message_of("images=/a/b=c(d)") == (
        "images=/a/b=c(d) cannot be read: `=` `(` `)` must be in quotes. As one text it is typed: "
        """'images="/a/b=c(d)"'"""
    )


def test_check_typed_expands_the_home_folder_in_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch advice that quotes ``~``, which neither the shell nor a dataset then expands."""
    monkeypatch.setenv("HOME", "/home/me")
    assert parsed(message_of("data.root=~/faces").partition("typed: ")[2]) == "/home/me/faces"


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (["images=/a/my", "summer", "photos", "seed=3"], "/a/my summer photos"),
        (["images=", "/a/b"], "/a/b"),
        (["seed=3", "images=/a/my", "photos"], "/a/my photos"),
        (["images=/a/it's", "mine"], "/a/it's mine"),
    ],
)
def test_check_typed_joins_a_value_with_spaces(line: list[str], advice: str) -> None:
    """Would catch the message of Hydra that `=` is missing in the second half of a path with spaces."""
    message = message_of(*line)
    suggestion = message.rpartition("type: ")[2]
    assert parsed(suggestion) == advice and suggestion.lstrip("'").startswith("images=")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pipnet", "pipnet: KEY=VALUE expected"),
        ("data=lapa106 pipnet", "pipnet: KEY=VALUE expected, without spaces"),
        ("data= lapa106", "data=lapa106"),
        ("data = lapa106", "data: KEY=VALUE expected, without spaces"),
        ("=3", "=3: there is no key before the ="),
        ("1a=3", "'1a' is not a key"),
        ("seed=1,2", "A run for each: -m seed=1,2; a list: 'seed=[1,2]'"),
        ("optimizer.lr=interval(1,2)", "with -m there is a run for each"),
        ("callbacks.early_stopping=patience", "type callbacks/early_stopping=patience"),
        ("--config-name rerun scheduler=plateau", "scheduler=plateau: a rerun has no config groups"),
    ],
)
def test_check_typed_explains_mistakes_of_the_syntax(line: str, expected: str) -> None:
    """Would catch a mistake that is reported in the terms of a parser, or by a traceback."""
    assert expected in message_of(*line.split(" "))


@pytest.mark.parametrize(
    ("word", "extra"),
    [("hydra/launcher=slurm", "slurm"), ("hydra/launcher=local_jobs", "slurm"), ("hydra/sweeper=search", "optuna")],
)
def test_check_typed_names_the_extra_of_a_launcher(word: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a launcher of a missing package, for which Hydra reports an unknown file."""
    check_typed(["-m", word, "seed=1,2"])
    monkeypatch.setattr("facelab.runs.typed.find_spec", lambda _: None)
    with pytest.raises(FacelabError, match=re.escape(f"{word} needs another package: pip install -e '.[{extra}]'")):
        check_typed(["-m", word, "seed=1,2"])


@pytest.mark.parametrize(
    "word", ["test_with=best", "landmarks=run", "callbacks.resumption.minutes=1", "augment.mirror_probability=0.5"]
)
def test_check_typed_gives_the_new_name_of_an_option(word: str) -> None:
    """Would catch a refused option of an earlier version without its name of today."""
    key = word.partition("=")[0]
    with pytest.raises(FacelabError, match=re.escape(f"{word}: {key} is called {renamed_key(key)} in this version")):
        check_typed([word])
    check_typed([f"++{word}"])  # a custom class may have this argument


@pytest.mark.parametrize("option", ["--cfg job", "-c all", "--cfg=job", "--info searchpath", "--info"])
def test_check_typed_refuses_to_show_the_configuration_of_a_sweep(option: str) -> None:
    """Would catch a traceback of Hydra, which shows a configuration or starts a sweep, but not both."""
    name = option.replace("=", " ").split()[0]
    message = f"{name} shows one configuration; leave out -m and the values with commas"
    assert message_of("-m", *option.split(), "seed=1,2") == message
    assert message_of(*option.split(), "seed=1") == ""


def test_check_typed_lists_all_faults() -> None:
    """Would catch a check that stops at the first fault."""
    assert len(message_of("images=(", "data=[lapa106]", "seed=1,2").splitlines()) == 3


def test_check_typed_skips_arguments_that_hydra_does_not_read() -> None:
    """Would catch a folder of ``resume=`` that is refused; it needs no quotes."""
    assert message_of("resume=/a/b=c (d)", unread="resume=") == ""
    assert message_of("resume=/a/b=c (d)").startswith("resume=/a/b=c (d) cannot be read")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("trainer.gradient_clip_val=1.0", ""),
        ("+trainer.strategy._target_=lightning.pytorch.strategies.DDPStrategy", ""),
        ("trainer.gradient_clip=1.0", "has no argument gradient_clip; did you mean `gradient_clip_val`?"),
        ("+trainer.max_epoch=3", "has no argument max_epoch; did you mean `max_epochs`?"),
    ],
)
def test_check_typed_knows_the_arguments_of_the_trainer(word: str, expected: str) -> None:
    """Would catch a mistyped key that is added, and refused only by each job of a sweep."""
    assert bool(message_of("-m", word, "seed=1,2")) == bool(expected)
    assert expected in message_of("-m", word, "seed=1,2")


@pytest.mark.parametrize("door", ["train", "evaluate", "predict", "benchmark"])
def test_check_typed_is_called_by_every_door(door: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch a door that omits the check or creates a folder before it."""
    with pytest.raises(SystemExit, match=r"images=/a/b=c\(d\) cannot be read.*\ndata=\[lapa106,wflw98\]: data takes"):
        open_door(door, "images=/a/b=c(d)", "data=[lapa106,wflw98]", folder=tmp_path)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


# Config groups


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in SIDE_BY_SIDE])
def test_check_typed_refuses_a_list_for_a_group(group: str) -> None:
    """Would catch a list of options whose last one Hydra uses, although the user expects two runs."""
    options = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    one, two = options[0], options[-1]
    message = message_of(f"{group}=[{one},{two}]")
    assert message.startswith(f"{group}=[{one},{two}]: {group} takes one option")
    if "/" not in group and one != two:
        assert f"-m {group}={one},{two}" in message
        assert message_of("-m", f"{group}=[{one},{two}]").endswith(f"a run for each: {group}={one},{two}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("data=[lapa106]", "type data=lapa106"),
        ("+data=[lapa106,wflw98]", "-m +data=lapa106,wflw98"),
        ("experiment=pfld_68 data=[lapa106,wflw98]", "-m data=lapa106,wflw98"),
        ("-m data=[lapa106,wflw98],ytf68", "a run for each: data=lapa106,wflw98,ytf68"),
        ("-m data=choice([lapa106,wflw98],ytf68)", "a run for each: data=lapa106,wflw98,ytf68"),
        ("data=lapa106,wflw98", "-m starts: -m data=lapa106,wflw98"),
        ("data=null", "data takes the name of an option: folder, lapa106"),
        ("data=3", "data takes the name of an option"),
        ("data={a:1}", "data takes the name of an option"),
        ("data=", "data takes the name of an option"),
        ("-m data=lapa106,null", "data takes the name of an option"),
        ("hydra/launcher=[slurm,local_jobs]", "type hydra/launcher=slurm"),
    ],
)
def test_check_typed_lists_the_options_of_a_group(line: str, expected: str) -> None:
    """Would catch another value than a name that is silently accepted, or a traceback of Hydra."""
    assert expected in message_of(*line.split(" "))


def test_check_typed_finds_groups_of_a_config_dir(tmp_path: Path) -> None:
    """Would catch a list of custom options that is not refused."""
    (tmp_path / "mine").mkdir()
    for name in ("a", "b"):
        (tmp_path / "mine" / f"{name}.yaml").write_text("_target_: torch.nn.Identity\n")
    assert message_of("+mine=[a,b]") == ""
    assert "-m +mine=a,b" in message_of("--config-dir", str(tmp_path), "+mine=[a,b]")
    assert "-m +mine=a,b" in message_of(f"--config-dir={tmp_path}", "+mine=[a,b]")


def test_check_typed_accepts_lists_for_groups_that_merge(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch two loggers that are refused, or one of them dropped."""
    open_door("train", "logger=[csv,tensorboard]", "--cfg", "job", "-p", "logger", folder=tmp_path)
    printed = capfd.readouterr().out
    assert "\ncsv:" in printed and "\ntensorboard:" in printed


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir", "paths.run"])
@pytest.mark.parametrize("place", ["{file}/run", "{file}/${{seed}}/run", "/proc/nothing/run"])
def test_check_typed_refuses_an_unwritable_folder(key: str, place: str, tmp_path: Path) -> None:
    """Would catch a traceback of Hydra, which creates the folder before it calls the door."""
    (tmp_path / "file").touch()
    folder = place.format(file=tmp_path / "file")
    assert message_of(f"{key}={folder}").startswith(f"{key}={folder}: nothing can be written there (/")
    assert message_of(f"{key}={folder}", "--cfg", "job") == message_of(f"{key}={tmp_path}/new/${{seed}}") == ""


def test_check_typed_refuses_an_unwritable_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the same without a typed folder; a resumed run has its own folder."""
    (tmp_path / "logs").touch()
    monkeypatch.chdir(tmp_path)
    assert message_of("seed=2").startswith("hydra.run.dir=logs: nothing can be written there (")
    assert message_of("resume=run", unread="resume=") == ""


def test_check_typed_accepts_null_for_a_group_without_a_default() -> None:
    """Would catch a recipe's early stopping that cannot be turned off."""
    check_typed(["callbacks/early_stopping=null", "experiment=null"])
    with pytest.raises(FacelabError, match="data takes the name of an option"):
        check_typed(["data=null"])


def test_check_groups_refuses_an_unknown_argument_of_the_trainer() -> None:
    """Would catch a mistyped key of a grid that each of its jobs reports after its start."""
    planned = OverridesParser.create().parse_overrides(["++trainer.gradient_clip_vall=0.5,1.0"])
    with pytest.raises(FacelabError, match=r"no argument gradient_clip_vall; did you mean `gradient_clip_val`"):
        check_groups(planned, [])
