"""Tests of names with tags, bars, links, line breaks or control characters: compare.py shows them as plain text."""

import csv
import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import run_folders
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import (
    CONFIG,
    ERROR,
    PROTOCOL,
    all_outputs,
    run_compare,
    with_values,
    write_faces,
    write_results,
    write_run,
)

from compare import open_console
from facelab.comparison.grid import one_line
from facelab.comparison.read import read_runs
from facelab.errors import CONTROLS, FacelabError, visible
from facelab.metrics.record import as_json

QUICK = settings(run_folders.QUICK, max_examples=30)
EVIL = [
    *("<script>alert(1)</script>", "a | b", "`a` ``", "[x](javascript:y)", "![x](y)", "two\nlines\n# three", "a\r\tb"),
    *(
        "\x1b[31mred\x1b]0;title\x07",
        "\x9b31m",
        "safe\u202egnp.exe",
        "\u2066a\u2069",
        "a\u2028b\u2029c",
        "\x00",
        "\x85",
    ),
    *("*a* _a_ __a__ ~~a~~ $a$", "&lt;b&gt;", "\\", "\\|", ":smile:", "=1+1", "\udcff", "</textarea><!--", "'\"><b>"),
]
"""Names that have an effect if they are not escaped."""
ESCAPED = [
    *(r"&lt;script&gt;alert(1)&lt;/script&gt;", r"a \| b", r"\`a\` \`\`", r"\[x\](javascript:y)", r"!\[x\](y)"),
    *(r"two\\nlines\\n# three", r"a\\r\\tb", r"\\x1b\[31mred\\x1b\]0;title\\x07", r"\\x9b31m", r"safe\\u202egnp.exe"),
    *(r"\\u2066a\\u2069", r"a\\u2028b\\u2029c", r"\\x00", r"\\x85", r"\*a\* \_a\_ \__a_\_ \~\~a\~\~ \$a\$"),
    *(
        "&amp;lt;b&amp;gt;",
        r"\\",
        r"\\\|",
        ":smile:",
        "=1+1",
        r"\\udcff",
        r"&lt;/textarea&gt;&lt;!--",
        "'\"&gt;&lt;b&gt;",
    ),
]
"""The names of EVIL as escaped for Markdown, in the same order."""


class Tags(HTMLParser):
    """Parser that counts the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        """Count the tag."""
        self.found[tag] = self.found.get(tag, 0) + 1


def runs_named(folder: Path, text: str) -> list[Any]:
    """Return runs with this text in names, settings, states, reasons and protocols, where a file can hold it."""
    clean = text.encode("utf-8", "replace").decode()  # JSON can hold characters that folders and YAML cannot
    name = clean.replace("/", "\u2215").replace("\0", "")[:60].strip(".") or "x"
    config = with_values(CONFIG, backbone={"_target_": clean, "name": clean})
    config |= {clean or "x": 0, "monitor": {"name": clean}}
    runs = []
    for job in (0, 1):
        run = write_run(folder / f"{name} {job}", measured=False)
        write_results(run, 2 + job, job, faces=4)
        (run / "config.yaml").write_text(json.dumps(config | {"seed": [job, clean]}))
        results = json.loads((run / "metrics.json").read_text())
        results["protocol"] |= {"dataset": text, text: text, "box": job}
        tag = ERROR._replace(value=0.1, whole="nme_ioc", breakdown="tag", part=text)
        odd = ERROR._replace(value=1.0, whole=text, breakdown=text, part=text)
        results["metrics"] |= {f"nme_ioc_tag_{text}": as_json(tag), f"mae_{text}": as_json(odd)}
        (run / "metrics.json").write_text(json.dumps(results))
        (run / "metrics.csv").write_bytes(b"epoch,step,train/loss\n0,0," + text.encode(errors="replace"))
        runs.append(run)
    failed = write_run(folder / f"{name} f", measured=False)
    (failed / "status.json").write_text(json.dumps({"state": text, "reason": text}))
    return read_runs([*runs, failed])


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_outputs_show_an_evil_name_as_text(tmp_path: Path, text: str) -> None:
    """Would catch a name that is run as a script, ends a table, hides another name or moves the cursor."""
    runs = runs_named(tmp_path / "runs", text)
    outputs = all_outputs(runs, tmp_path / "out")
    (tmp_path / "tame").mkdir()
    tame_outputs = all_outputs(runs_named(tmp_path / "tame" / "runs", "tame"), tmp_path / "tame" / "out")
    for name in ("terminal", "a.md", "a.html"):
        assert not CONTROLS.search(outputs[name]), name
    for name in ("terminal", "a.md"):
        assert outputs[name].count("\n") == tame_outputs[name].count("\n"), f"{name} has more lines"
    assert Tags(outputs["a.html"]).found == Tags(tame_outputs["a.html"]).found
    data = outputs["a.html"].split('id="data">')[1].split("</script>")[0]
    assert "<" not in data and data.isascii()
    assert one_line(text).strip() in outputs["terminal"]
    rows = [line for line in outputs["a.md"].splitlines() if line.startswith("|")]
    assert sorted(len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows) == sorted(
        len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in tame_outputs["a.md"].splitlines() if row.startswith("|")
    )


@pytest.mark.parametrize(("text", "expected"), list(zip(EVIL, ESCAPED, strict=True)), ids=map(ascii, EVIL))
def test_write_markdown_escapes_a_name(tmp_path: Path, text: str, expected: str) -> None:
    """Would catch a name that Markdown renders as a link, emphasis, code, a formula or a tag."""
    write_run(tmp_path / "a", protocol={"dataset": text})
    markdown = all_outputs(read_runs([tmp_path / "a"]), tmp_path / "out")["a.md"]
    assert markdown.startswith(f"**{expected} test, 100 faces")


@QUICK
@given(st.text(st.characters(exclude_categories=[]), max_size=30))
def test_outputs_show_any_name_as_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Would catch a name that ends the comparison, or that reaches the terminal, Markdown or the page unescaped."""
    folder = tmp_path_factory.mktemp("names")
    outputs = all_outputs(runs_named(folder / "runs", text), folder / "out")
    assert not any(CONTROLS.search(outputs[name]) for name in ("terminal", "a.md", "a.html"))
    assert html.escape(one_line(text)).strip() in outputs["a.html"]


def test_write_csv_keeps_names(tmp_path: Path) -> None:
    """Would catch a name that the CSV file changes, and an undecodable name that ends the comparison."""
    name = 'a|b <c> "d", \x1b[31m\u202e\n=1+1'
    write_run(tmp_path / "runs" / name, protocol={"dataset": name})
    os.rename(write_run(tmp_path / "x"), os.fsencode(tmp_path / "runs") + b"/\xff")  # noqa: PTH104  bytes
    all_outputs(read_runs([tmp_path / "runs" / "*"]), tmp_path / "out")
    with (tmp_path / "out" / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {name, "\\udcff"}
    assert rows[name]["protocol.dataset"] == name and rows["\\udcff"]["protocol.dataset"] == PROTOCOL["dataset"]


def test_compare_script_shows_names_of_a_pair_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch names of a pair, or in its error message, that move the cursor of the terminal."""
    for name in ("\x1b[31ma", "\x1b[31mb"):
        write_faces(write_run(tmp_path / "runs" / name, protocol={"x": name}), [0.1, 0.2], ["\x1b", "b"])
    run_compare(monkeypatch, tmp_path / "runs" / "*", "--pair", "ma", "mb")
    shown = capsys.readouterr().out
    assert r"A \x1b[31ma" in shown and not CONTROLS.search(shown)
    with pytest.raises(SystemExit) as caught:
        run_compare(monkeypatch, tmp_path / "runs" / "*", "--pair", "31m", "mb")
    assert r"\x1b[31ma" in str(caught.value.code) and not CONTROLS.search(str(caught.value.code))


def test_open_console_prints_markup_as_text() -> None:
    """Would catch a name shown as an emoji or a colour by rich's markup."""
    console = open_console()
    with console.capture() as captured:
        console.print("a :smile: [red]b[/red] 1")
    assert captured.get() == "a :smile: [red]b[/red] 1\n"


def test_facelab_error_escapes_control_characters() -> None:
    """Would catch a file name that clears the screen, and lost line breaks or letters of a language."""
    assert str(FacelabError("a\x1b[2J\n\tb\r\udcff")) == "a\\x1b[2J\n\tb\\r\\udcff"
    for text in ("Grüße", "سلام", "👩\u200d🚀", "\u00a0"):
        assert visible(text) == text
