"""Arguments of Lightning's Trainer from its source file: importing Lightning takes seconds."""

import ast
import functools
from importlib.util import find_spec
from pathlib import Path


@functools.cache
def trainer_arguments() -> tuple[str, ...]:
    """Return the names of the arguments of ``lightning.Trainer``. Tested by ``test_internals.py``."""
    package = find_spec("lightning")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "pytorch" / "trainer" / "trainer.py"
    nodes = ast.parse(source.read_bytes()).body
    body = next(node.body for node in nodes if isinstance(node, ast.ClassDef) and node.name == "Trainer")
    method = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return tuple(argument.arg for argument in method.args.kwonlyargs)
