"""Who may import whom: the contracts of pyproject.toml hold, forbid what they say, and leave no package out."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from composing import MODELS
from conftest import ROOT

from facelab.runs.targets import PROJECT

SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINT: dict[str, Any] = SETTINGS["tool"]["importlinter"]
KINDS = ("networks", "losses", "coders")
CODE = sorted(
    path for folder in (*PROJECT, "hydra_plugins") for path in (ROOT / folder).rglob("*.py") if path.stat().st_size
)
BREAKS = {
    "a floor upward": ("facelab/coders/pipnet.py", "import facelab.networks.pipnet", "A floor knows"),
    "neighbours": ("facelab/losses/pfld.py", "import facelab.networks.pfld", "A floor knows"),
    "module and datamodule": ("lightning_modules/pfld.py", "import datamodules.pfld", "A floor knows"),
    "within a function": ("facelab/files.py", "def f():\n    import facelab.faces.crop", "A floor knows"),
    "for type checkers": (
        "facelab/metrics/landmarks.py",
        "import typing\nif typing.TYPE_CHECKING:\n    import lightning_modules.landmark",
        "A floor knows",
    ),
    "a callback and a run": ("callbacks/results.py", "import facelab.runs.report", "A floor knows"),
    "a circle of a run": ("facelab/runs/processes.py", "import facelab.runs.overrides", "A run:"),
    "a circle of many runs": ("facelab/comparison/read.py", "import facelab.comparison.grid", "Many runs:"),
    "torch in a reader": ("facelab/annotations/folder.py", "import torch", "Readers of datasets"),
    "Hydra in a part": ("facelab/faces/crop.py", "import omegaconf", "Hydra composes"),
    "torch in the comparison": ("facelab/metrics/face_table.py", "import torch", "The comparison of runs"),
    "a run in the comparison": ("facelab/comparison/pairs.py", "import facelab.runs.report", "The comparison of runs"),
    "a door": ("facelab/runs/report.py", "import train", "Nobody imports a door"),
}
"""What is broken -> file, lines that break it, how the contract begins that must say so."""


QUICK = ("a floor upward", "for type checkers", "torch in the comparison")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in BREAKS]
)
def test_contracts_fail_when_broken(case: str, tmp_path: Path) -> None:
    """A contract that blesses what it was written to forbid, for a layer left out or an import that it ignores."""
    for folder in (*PROJECT, "hydra_plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    name, lines, contract = BREAKS[case]
    with (tmp_path / name).open("a") as file:
        file.write(f"\n{lines}\n")
    line = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    said = subprocess.run(line, cwd=tmp_path, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True)
    broken = [text for text in said.stdout.splitlines() if " BROKEN" in text]
    assert said.returncode == 1
    assert any(text.startswith(contract) for text in broken), said.stdout + said.stderr


def test_layers_name_every_package() -> None:
    """A new package that no contract speaks of, so that it may import what it likes."""
    contracts = {" ".join(contract["name"].split()[:2]): contract for contract in LINT["contracts"]}
    layers = {name.strip() for layer in contracts["A floor"]["layers"] for name in layer.split("|")}
    inner = {path.stem for path in (ROOT / "facelab").iterdir() if path.is_dir() or path.suffix == ".py"}
    rooms = {f"facelab.{name}" for name in inner if not name.startswith("__")}
    assert layers == rooms | {*LINT["root_packages"]} - {"facelab"}
    assert {*contracts["Hydra composes"]["source_modules"]} == PROJECT


def test_packages_are_the_same_everywhere() -> None:
    """A package that is checked and not shipped, or shipped and not allowed in a configuration."""
    found = SETTINGS["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix("*") for name in found} == {*LINT["root_packages"]} == PROJECT | {"hydra_plugins"}


def names_of(path: Path) -> set[str]:
    """Every module that a file imports, at any place."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("method", MODELS)
@pytest.mark.parametrize("folder", ["lightning_modules", "datamodules", *(f"facelab/{kind}" for kind in KINDS)])
def test_method_knows_no_other_method(method: str, folder: str) -> None:
    """A method that cannot be changed or taken away without another one."""
    file = ROOT / folder / f"{method}.py"
    if file.is_file():
        others = {f"{folder.replace('/', '.')}.{other}" for other in MODELS if other != method}
        assert others & names_of(file) == set()


def test_signals_have_one_owner() -> None:
    """A second place that sets handlers: which of both a signal reaches then depends on their order."""
    users = [str(path.relative_to(ROOT)) for path in CODE if "signal" in names_of(path)]
    assert users == ["facelab/signals.py"]


def test_only_the_frame_of_the_doors_exits() -> None:
    """A library that ends the program of who uses it."""
    exits = [
        str(path.relative_to(ROOT))
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and node.exc is not None and "SystemExit" in ast.dump(node.exc)
    ]
    assert set(exits) == {"facelab/runs/start.py"}
    for name, allowed in (("sys.exit(", []), ("os._exit(", ["signals.py"])):  # of a worker whose parent has ended
        assert [path.name for path in CODE if name in path.read_text()] == allowed


PRIVATE = {"facelab/internals/lightning.py", "facelab/internals/torch.py", "hydra_plugins/facelab_grid.py"}
"""The files that know what Lightning, torch and Hydra do not promise."""


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_parts_of_libraries_have_one_room(path: Path) -> None:
    """A private name of a library that a release may take away, in a file where nobody looks for it."""
    if str(path.relative_to(ROOT)) in PRIVATE:
        return
    own = {"_asdict", "_replace", "_make", "_fields", "_exit"}  # public names of NamedTuple and os
    tree = ast.parse(path.read_text())
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    foreign = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    assert foreign - own == set()
    assert [name for name in names_of(path) if "._" in name] == []
    assert {"fit_loop", "epoch_loop", "val_check_batch"}.isdisjoint(
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    )


def test_comparison_imports_neither_torch_nor_hydra() -> None:
    """A dashboard that takes ten seconds to open, or that cannot where torch is not installed."""
    modules = [f"facelab.comparison.{path.stem}" for path in (ROOT / "facelab/comparison").glob("*.py")]
    code = f"import sys\nimport {', '.join(modules)}\nprint(*sorted(sys.modules))".replace(".__init__", "")
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "lightning", "hydra", "omegaconf"}.isdisjoint(said.stdout.split())


def test_no_test_imports_another() -> None:
    """A test that cannot be moved or run without another, or that fails with a script that measures something."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    tests = {path.stem for path in files if path.stem.startswith("test_")} | {"scripts"}
    assert [(path.name, name) for path in files for name in names_of(path) if name.partition(".")[0] in tests] == []
