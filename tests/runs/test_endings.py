"""Test that every ending of a run ends all of its processes."""

import subprocess
import sys

import pytest
from conftest import ROOT

STATES = {"SIGKILL": "lost", "error": "failed"}
SECONDS = 20.0
"""Limit of an ending; far longer than needed, as the machine also does other work."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "workers", "moments", "causes"),
    [
        (1, 0, ("epoch", "checkpoint"), ("SIGUSR2", "error")),
        (1, 1, ("render", "fork", "validation", "picture", "shutdown", "test"), ("SIGTERM", "SIGKILL")),
        (1, 1, ("render", "validation"), ("SIGINT", "error")),
        (1, 4, ("step", "table", "worker"), ("SIGTERM", "SIGKILL")),
        (1, 4, ("step", "worker"), ("SIGUSR2", "error")),
        (2, 1, ("join", "validation"), ("SIGTERM", "SIGKILL")),
        (2, 1, ("validation",), ("error",)),
    ],
)
def test_train_leaves_no_process_after_any_ending(
    devices: int, workers: int, moments: list[str], causes: list[str]
) -> None:
    """Would catch workers that ignore SIGTERM of a parent that waits for them, or children of a killed parent."""
    line = [sys.executable, "scripts/endings.py", "--devices", str(devices), "--workers", str(workers), "--log"]
    line += ["--moments", *moments, "--causes", *causes]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    _, *rows, count = [row.split() for row in done.stdout.splitlines()]
    assert count[1:] == ["cases"], done.stdout
    assert len(rows) == int(count[0]) >= len(moments) * len(causes), done.stdout
    for _, _, _, cause, _, state, code, seconds in rows:
        assert state == STATES.get(cause, "stopped"), done.stdout
        assert code != "never", done.stdout
        assert float(seconds) < SECONDS, done.stdout
