"""Tests of the examples in docstrings."""

import doctest
from importlib import import_module

import pytest
from conftest import ROOT

MODULES = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for pattern in (
        "faces/geometry.py",
        "faces/boxes.py",
        "faces/pose.py",
        "metrics/*.py",
        "coders/*.py",
        "losses/*.py",
    )
    for path in sorted((ROOT / "facelab").glob(pattern))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_hold(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch an example that a change of the code made wrong."""
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failed == 0, capsys.readouterr().out
