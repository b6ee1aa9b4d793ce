"""Tests of the import contracts in pyproject.toml: they hold, fail when broken, and cover every package."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from composing import options
from conftest import ROOT

from facelab.runs.targets import PROJECT

SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINT: dict[str, Any] = SETTINGS["tool"]["importlinter"]
KINDS = ("networks", "losses", "coders")
CODE = sorted(
    path for folder in (*PROJECT, "hydra_plugins") for path in (ROOT / folder).rglob("*.py") if path.stat().st_size
)
BREAKS = {
    "an upper layer": ("facelab/coders/pipnet.py", "import facelab.networks.pipnet", "Layers:"),
    "neighbours": ("facelab/losses/pfld.py", "import facelab.networks.pfld", "Layers:"),
    "module and datamodule": ("lightning_modules/pfld.py", "import datamodules.pfld", "Layers:"),
    "within a function": ("facelab/files.py", "def f():\n    import facelab.faces.crop", "Layers:"),
    "for type checkers": (
        "facelab/metrics/landmarks.py",
        "import typing\nif typing.TYPE_CHECKING:\n    import lightning_modules.landmark",
        "Layers:",
    ),
    "a callback and a run": ("callbacks/results.py", "import facelab.runs.report", "Layers:"),
    "a circle of a run": ("facelab/runs/processes.py", "import facelab.runs.overrides", "A run:"),
    "a circle of many runs": ("facelab/comparison/read.py", "import facelab.comparison.grid", "Many runs:"),
    "torch in a reader": ("facelab/annotations/folder.py", "import torch", "Readers of datasets"),
    "Hydra in a part": ("facelab/faces/crop.py", "import omegaconf", "Hydra is imported only"),
    "torch in the comparison": ("facelab/metrics/face_table.py", "import torch", "Comparison:"),
    "a run in the comparison": ("facelab/comparison/pairs.py", "import facelab.runs.report", "Comparison:"),
    "a door": ("facelab/runs/report.py", "import train", "Nobody imports a door"),
}
"""Breach -> file, lines that break a contract, first words of that contract."""


QUICK = ("an upper layer", "for type checkers", "torch in the comparison")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in BREAKS]
)
def test_import_contracts_fail_when_broken(case: str, tmp_path: Path) -> None:
    """Would catch a contract that misses an import it forbids, because of a missing layer or an ignored import."""
    for folder in (*PROJECT, "hydra_plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    name, lines, contract = BREAKS[case]
    with (tmp_path / name).open("a") as file:
        file.write(f"\n{lines}\n")
    line = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(line, cwd=tmp_path, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True)
    broken = [text for text in done.stdout.splitlines() if " BROKEN" in text]
    assert done.returncode == 1
    assert any(text.startswith(contract) for text in broken), done.stdout + done.stderr


def test_import_contracts_name_every_package() -> None:
    """Would catch a new package without a contract, which may then import everything."""
    contracts = {" ".join(contract["name"].split()[:2]): contract for contract in LINT["contracts"]}
    layers = {name.strip() for layer in contracts["Layers: a"]["layers"] for name in layer.split("|")}
    names = {path.stem for path in (ROOT / "facelab").iterdir() if path.is_dir() or path.suffix == ".py"}
    packages = {f"facelab.{name}" for name in names if not name.startswith("__")}
    assert layers == packages | {*LINT["root_packages"]} - {"facelab"}
    assert {*contracts["Hydra is"]["source_modules"]} == PROJECT


def test_pyproject_lists_the_same_packages_everywhere() -> None:
    """Would catch a package that is checked but not shipped, or shipped but not allowed in a configuration."""
    shipped = SETTINGS["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix("*") for name in shipped} == {*LINT["root_packages"]} == PROJECT | {"hydra_plugins"}


def names_of(path: Path) -> set[str]:
    """Return every module that a file imports, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("method", options("model"))
@pytest.mark.parametrize("folder", ["lightning_modules", "datamodules", *(f"facelab/{kind}" for kind in KINDS)])
def test_method_imports_no_other_method(method: str, folder: str) -> None:
    """Would catch a method that cannot be changed or removed without another one."""
    file = ROOT / folder / f"{method}.py"
    if file.is_file():
        others = {f"{folder.replace('/', '.')}.{other}" for other in options("model") if other != method}
        assert others & names_of(file) == set()


def test_only_signals_py_sets_signal_handlers() -> None:
    """Would catch a second module that sets handlers: their order then decides which one receives a signal."""
    users = [str(path.relative_to(ROOT)) for path in CODE if "signal" in names_of(path)]
    assert users == ["facelab/signals.py"]


def test_only_start_py_raises_system_exit() -> None:
    """Would catch a library function that ends the program of its caller."""
    exits = [
        str(path.relative_to(ROOT))
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and node.exc is not None and "SystemExit" in ast.dump(node.exc)
    ]
    assert set(exits) == {"facelab/runs/start.py"}
    for name, allowed in (("sys.exit(", []), ("os._exit(", ["signals.py"])):  # in a worker whose parent has ended
        assert [path.name for path in CODE if name in path.read_text()] == allowed


PRIVATE = {"facelab/internals/lightning.py", "facelab/internals/torch.py", "hydra_plugins/facelab_grid.py"}
"""Files that may use private names of Lightning, torch and Hydra."""


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_libraries_are_used_in_few_files(path: Path) -> None:
    """Would catch a private name, which a release may remove, in a file where nobody looks for it."""
    if str(path.relative_to(ROOT)) in PRIVATE:
        return
    allowed = {
        "_asdict",
        "_replace",
        "_make",
        "_fields",
        "_field_defaults",
        "_exit",
    }  # public names of NamedTuple and os
    tree = ast.parse(path.read_text())
    allowed |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    foreign = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    assert foreign - allowed == set()
    assert [name for name in names_of(path) if "._" in name] == []
    assert {"fit_loop", "epoch_loop", "val_check_batch"}.isdisjoint(
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    )


def test_comparison_imports_neither_torch_nor_hydra() -> None:
    """Would catch a dashboard that opens after ten seconds, or not at all without torch."""
    modules = [f"facelab.comparison.{path.stem}" for path in (ROOT / "facelab/comparison").glob("*.py")]
    code = f"import sys\nimport {', '.join(modules)}\nprint(*sorted(sys.modules))".replace(".__init__", "")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "lightning", "hydra", "omegaconf"}.isdisjoint(done.stdout.split())


def test_tests_import_no_other_test() -> None:
    """Would catch a test that cannot be moved or run alone, or that fails with a script."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    tests = {path.stem for path in files if path.stem.startswith("test_")} | {"scripts"}
    assert [(path.name, name) for path in files for name in names_of(path) if name.partition(".")[0] in tests] == []
