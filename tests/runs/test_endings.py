"""Every way out of a run ends all of its processes."""

import subprocess
import sys

import pytest
from conftest import ROOT

STATES = {"SIGKILL": "lost", "error": "failed"}
SECONDS = 20.0
"""Far more than it takes, on a machine that does other things too."""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_endings_leave_no_process(workers: int) -> None:
    """Workers that ignore the SIGTERM of their parent, which waits for them for ever; children of a killed parent."""
    moments = {1: ("render", "fork", "validation", "picture", "test"), 4: ("step", "table", "worker")}[workers]
    causes = ("SIGTERM", "SIGINT", "SIGKILL", "error")
    line = [sys.executable, "scripts/endings.py", "--workers", str(workers), "--log", "--moments", *moments]
    done = subprocess.run([*line, "--causes", *causes], cwd=ROOT, capture_output=True, text=True, check=True)
    _, *rows, count = [row.split() for row in done.stdout.splitlines()]
    assert count == [str(len(moments) * len(causes)), "cases"], done.stdout
    for _, _, _, cause, _, state, code, seconds in rows:
        assert state == STATES.get(cause, "stopped"), done.stdout
        assert code != "never", done.stdout
        assert float(seconds) < SECONDS, done.stdout
