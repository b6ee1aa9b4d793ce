"""The sweeper of the project. Hydra takes sweepers only from packages of this name."""

import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn

log = logging.getLogger(__name__)


class GridSweeper(BasicSweeper):
    """Hydra's grid, whose cells are written down before any is started, and of which only what is missing is started.

    The sweep ends with what the folders of its cells say, whatever the launcher says: a requeued job looks like a
    failed one to it, and a failed one like the end of all.

    Args:
        max_batch_size: cells that are handed to the launcher at a time; null for all.
        params: overrides of every cell, as in ``hydra.sweeper.params``.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        super().__init__(max_batch_size=max_batch_size, params=params)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Start the cells that are neither finished nor at work.

        Args:
            arguments: the overrides as typed; for a sweep that goes on, what is to be added to those of its cells.

        Raises:
            SystemExit: not all cells are finished in the end, or a mistake of the user's.
        """
        from facelab.runs.start import exits

        with exits():
            return self._sweep(arguments)

    def _sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        from facelab.errors import RunError
        from facelab.runs.overrides import RESUME
        from facelab.runs.sweep import ledger, show, write_cells

        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        cells, new = self._open_cells(folder, arguments)
        # Hydra numbers the jobs of a launch without gaps; the folder is the cell's own.
        jobs = [[*overrides, f"hydra.sweep.subdir={number}"] for number, overrides in cells.items()]
        self.validate_batch_is_legal(jobs)
        if new:
            write_cells(folder, cells)
        returns: list[Sequence[JobReturn]] = []
        try:
            for batch in self.split_overrides_to_chunks(jobs, self.max_batch_size) if jobs else ():
                try:
                    returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
                except Exception as error:  # a launcher that waits for jobs raises what one of them did
                    log.debug("the launcher ended so:", exc_info=error)
                    words = str(error).strip().splitlines() or [type(error).__name__]
                    log.warning("the launcher says: %s", words[-1])
        finally:
            show(all_cells := ledger(folder))
        if left := [str(cell.number) for cell in all_cells if cell.status.state != "finished"]:
            raise RunError(
                f"{len(left)} of {len(all_cells)} cells are not finished: {', '.join(left)}. "
                f"python {Path(sys.argv[0]).name} -m {shlex.quote(f'{RESUME}{folder}')} runs what is missing or failed"
            )
        return returns

    def _open_cells(self, folder: Path, arguments: list[str]) -> tuple[dict[int, list[str]], bool]:
        """Number to overrides of the cells to start, and whether the sweep is a new one.

        Raises:
            RunError: other cells are asked of a sweep that goes on.
            FacelabError: a config group is given something else than names of its options.
        """
        from facelab.errors import RunError
        from facelab.run_folder import RunFolder
        from facelab.runs.overrides import RESUMED, check_links, check_words, first_cell
        from facelab.runs.processes import restart_with_next_stamp
        from facelab.runs.sweep import ledger, waiting
        from facelab.runs.typed import check_groups

        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        if RunFolder(folder).sweep.exists():
            restart_with_next_stamp(folder)
            if RESUMED in os.environ:  # what was typed stands behind the first cell's own words
                arguments = arguments[len(first_cell(folder)) :]
            else:
                os.environ[RESUMED] = json.dumps(arguments)
        else:
            planned = parser.parse_overrides([*self._parse_config(), *arguments])
            check_groups(planned, sys.argv[1:])
            (every,) = self.split_arguments(planned, None)
            return dict(enumerate(every)), True
        overrides = parser.parse_overrides(arguments)
        if several := [str(word.input_line) for word in overrides if word.is_sweep_override()]:
            raise RunError(f"{folder} is a sweep with cells of its own; {', '.join(several)} would be others")
        cells = [cell for cell in ledger(folder) if cell.status.state not in ("finished", "running", "queued")]
        if waiting(folder):
            left = [cell for cell in cells if cell.status.state != "missing"]
            if len(left) < len(cells):
                log.warning("jobs of this sweep wait in Slurm's queue; the cells that have not begun are left to them")
            cells = left
        check_links(folder)
        for cell in cells:
            check_words(cell.overrides, arguments, folder / str(cell.number))
        return {cell.number: [*cell.overrides, *arguments] for cell in cells}, False  # the last of a key is taken
