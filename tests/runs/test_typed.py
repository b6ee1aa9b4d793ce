"""What is said of a command line before Hydra reads it."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, open_door
from hydra.core.override_parser.overrides_parser import OverridesParser

from facelab.errors import FacelabError
from facelab.renames import renamed_key
from facelab.runs.argv import normalise_argv
from facelab.runs.typed import check_typed

GROUPS = sorted(
    {str(path.parent.relative_to(ROOT / "conf")) for path in (ROOT / "conf").glob("*/**/*.yaml")} - {"hydra"}
)
SIDE_BY_SIDE = {"callbacks", "logger", "paths"}
"""Groups whose options are mappings that can be joined."""
NASTY = [
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


def said(*words: str, unread: str | None = None) -> str:
    """What is said of a line; empty where it is taken."""
    try:
        check_typed(normalise_argv(words), unread)
    except FacelabError as error:
        return str(error)
    return ""


def read(typed: str) -> object:
    """What Hydra reads of a word as it is typed in a shell."""
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
def test_typed_takes_what_hydra_takes(line: str) -> None:
    """Would catch a line that ran before and is refused."""
    assert said(*shlex.split(line)) == ""


# Values that cannot be read


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("key", ["images", "+data.root"])
def test_typed_quotes_what_cannot_be_read(key: str, text: str) -> None:
    """Would catch advice that a shell or Hydra reads as something else, and words of Hydra's parser."""
    told = said("seed=1", f"{key}={text}")
    assert told.startswith(f"{key}={text} ")
    assert "mismatched" not in told and "LexerNoViableAlt" not in told
    advice = told.partition("typed: ")[2] or told.partition("one text: ")[2]
    assert advice.startswith(("'", key))
    assert read(advice) == text
    assert said(*shlex.split(advice)) == ""


def test_typed_says_which_letters_need_quotes() -> None:
    """Would catch advice whose reason nobody sees."""
    assert said("images=/a/b=c(d)") == (
        "images=/a/b=c(d) cannot be read: `=` `(` `)` must be in quotes. As one text it is typed: "
        """'images="/a/b=c(d)"'"""
    )


def test_typed_says_where_home_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch quotes around a ``~``, behind which no shell and no reader of a dataset looks for the home."""
    monkeypatch.setenv("HOME", "/home/me")
    assert read(said("data.root=~/faces").partition("typed: ")[2]) == "/home/me/faces"


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (["images=/a/my", "summer", "photos", "seed=3"], "/a/my summer photos"),
        (["images=", "/a/b"], "/a/b"),
        (["seed=3", "images=/a/my", "photos"], "/a/my photos"),
        (["images=/a/it's", "mine"], "/a/it's mine"),
    ],
)
def test_typed_joins_what_a_space_parted(line: list[str], advice: str) -> None:
    """Would catch a path with spaces of which Hydra says that `=` is missing in its second half."""
    told = said(*line)
    found = told.rpartition("type: ")[2]
    assert read(found) == advice and found.lstrip("'").startswith("images=")


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
    ],
)
def test_typed_explains_words_that_hydra_would_not(line: str, expected: str) -> None:
    """Would catch a mistake that is told in the words of a parser, or by a traceback."""
    assert expected in said(*line.split(" "))


@pytest.mark.parametrize(
    ("word", "extra"),
    [("hydra/launcher=slurm", "slurm"), ("hydra/launcher=local_jobs", "slurm"), ("hydra/sweeper=search", "optuna")],
)
def test_typed_names_the_extra_of_a_launcher(word: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher whose package is not installed, for which Hydra names a file that nobody can find."""
    check_typed(["-m", word, "seed=1,2"])
    monkeypatch.setattr("facelab.runs.typed.find_spec", lambda _: None)
    with pytest.raises(FacelabError, match=re.escape(f"{word} needs another package: pip install -e '.[{extra}]'")):
        check_typed(["-m", word, "seed=1,2"])


@pytest.mark.parametrize(
    "word", ["test_with=best", "landmarks=run", "callbacks.resumption.minutes=1", "augment.mirror_probability=0.5"]
)
def test_typed_names_the_new_name_of_an_option(word: str) -> None:
    """An option of an earlier version that is refused without the name it has today."""
    key = word.partition("=")[0]
    with pytest.raises(FacelabError, match=re.escape(f"{word}: {key} is called {renamed_key(key)} in this version")):
        check_typed([word])
    check_typed([f"++{word}"])  # of an own class, perhaps


def test_typed_tells_all_faults_at_once() -> None:
    """Would catch a check that stops at the first."""
    assert len(said("images=(", "data=[lapa106]", "seed=1,2").splitlines()) == 3


def test_typed_leaves_alone_what_hydra_does_not_see() -> None:
    """Would catch the folder of ``resume=``, which may be typed as it is, refused with what Hydra reads."""
    assert said("resume=/a/b=c (d)", unread="resume=") == ""
    assert said("resume=/a/b=c (d)").startswith("resume=/a/b=c (d) cannot be read")


@pytest.mark.parametrize("door", ["train", "evaluate", "predict", "benchmark"])
def test_typed_is_checked_by_every_door(door: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch a door that leaves it to Hydra, or that makes a folder first."""
    with pytest.raises(SystemExit, match=r"images=/a/b=c\(d\) cannot be read.*\ndata=\[lapa106,wflw98\]: data takes"):
        open_door(door, "images=/a/b=c(d)", "data=[lapa106,wflw98]", folder=tmp_path)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


# Config groups


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in SIDE_BY_SIDE])
def test_typed_refuses_a_list_for_a_group(group: str) -> None:
    """Would catch a list of options of which Hydra takes the last, while who typed it waits for two runs."""
    options = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    one, two = options[0], options[-1]
    told = said(f"{group}=[{one},{two}]")
    assert told.startswith(f"{group}=[{one},{two}]: {group} takes one option")
    if "/" not in group and one != two:
        assert f"-m {group}={one},{two}" in told
        assert said("-m", f"{group}=[{one},{two}]").endswith(f"a run for each: {group}={one},{two}")


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
def test_typed_says_what_a_group_takes(line: str, expected: str) -> None:
    """Would catch something else than a name that is taken in silence, or told by a traceback of Hydra."""
    assert expected in said(*line.split(" "))


def test_typed_knows_groups_of_a_config_dir(tmp_path: Path) -> None:
    """Would catch options of one's own, of which the last is taken."""
    (tmp_path / "mine").mkdir()
    for name in ("a", "b"):
        (tmp_path / "mine" / f"{name}.yaml").write_text("_target_: torch.nn.Identity\n")
    assert said("+mine=[a,b]") == ""
    assert "-m +mine=a,b" in said("--config-dir", str(tmp_path), "+mine=[a,b]")
    assert "-m +mine=a,b" in said(f"--config-dir={tmp_path}", "+mine=[a,b]")


def test_typed_options_side_by_side_are_both_taken(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch two loggers refused, or one of them dropped."""
    open_door("train", "logger=[csv,tensorboard]", "--cfg", "job", "-p", "logger", folder=tmp_path)
    printed = capfd.readouterr().out
    assert "\ncsv:" in printed and "\ntensorboard:" in printed


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir", "paths.run"])
@pytest.mark.parametrize("place", ["{file}/run", "{file}/${{seed}}/run", "/proc/nothing/run"])
def test_a_folder_that_cannot_be_written_to_is_told(key: str, place: str, tmp_path: Path) -> None:
    """A traceback of Hydra, which makes the folder before it calls the door."""
    (tmp_path / "file").touch()
    folder = place.format(file=tmp_path / "file")
    assert said(f"{key}={folder}").startswith(f"{key}={folder}: nothing can be written there (/")
    assert said(f"{key}={folder}", "--cfg", "job") == said(f"{key}={tmp_path}/new/${{seed}}") == ""


def test_a_place_without_logs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where no folder is typed; a run that is resumed lies elsewhere."""
    (tmp_path / "logs").touch()
    monkeypatch.chdir(tmp_path)
    assert said("seed=2").startswith("hydra.run.dir=logs: nothing can be written there (")
    assert said("resume=run", unread="resume=") == ""
