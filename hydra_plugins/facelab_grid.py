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
    """Hydra's grid, whose jobs are written down before any is started, and of which only what is missing is started.

    The sweep ends with what the folders of its jobs say, whatever the launcher says: a requeued job looks like a
    failed one to it, and a failed one like the end of all.

    Args:
        max_batch_size: jobs that are handed to the launcher at a time; null for all.
        params: overrides of every job, as in ``hydra.sweeper.params``.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        super().__init__(max_batch_size=max_batch_size, params=params)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Start the jobs that are neither finished nor at work.

        Args:
            arguments: the overrides as typed; for a sweep that goes on, what is to be added to those of its jobs.

        Raises:
            SystemExit: not all jobs are finished in the end, or a mistake of the user's.
        """
        from facelab.runs.start import exits

        with exits():
            return self._sweep(arguments)

    def _sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        from facelab.errors import RunError
        from facelab.runs.overrides import RESUME
        from facelab.runs.sweep import ledger, show, write_jobs

        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        jobs, new = self._open_jobs(folder, arguments)
        # Hydra numbers the jobs of a launch without gaps; the number of the folder may be another.
        batches = [[*overrides, f"hydra.sweep.subdir={number}"] for number, overrides in jobs.items()]
        self.validate_batch_is_legal(batches)
        if new:
            write_jobs(folder, jobs)
        returns: list[Sequence[JobReturn]] = []
        try:
            for batch in self.split_overrides_to_chunks(batches, self.max_batch_size) if batches else ():
                try:
                    returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
                except Exception as error:  # a launcher that waits for jobs raises what one of them did
                    log.debug("the launcher ended so:", exc_info=error)
                    words = str(error).strip().splitlines() or [type(error).__name__]
                    log.warning("the launcher says: %s", words[-1])
        finally:
            show(all_jobs := ledger(folder))
        if left := [str(job.number) for job in all_jobs if job.status.state != "finished"]:
            raise RunError(
                f"{len(left)} of {len(all_jobs)} jobs are not finished: {', '.join(left)}. "
                f"python {Path(sys.argv[0]).name} -m {shlex.quote(f'{RESUME}{folder}')} runs what is missing or failed"
            )
        return returns

    def _open_jobs(self, folder: Path, arguments: list[str]) -> tuple[dict[int, list[str]], bool]:
        """Number to overrides of the jobs to start, and whether the sweep is a new one.

        Raises:
            RunError: other jobs are asked of a sweep that goes on.
            FacelabError: a config group is given something else than names of its options.
        """
        from facelab.errors import RunError
        from facelab.run_folder import RunFolder
        from facelab.runs.overrides import RESUMED, check_links, check_words, first_job
        from facelab.runs.processes import restart_with_next_stamp
        from facelab.runs.sweep import ledger, waiting
        from facelab.runs.typed import check_groups

        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        if RunFolder(folder).sweep.exists():
            restart_with_next_stamp(folder)
            if RESUMED in os.environ:  # what was typed stands behind the first cell's own words
                arguments = arguments[len(first_job(folder)) :]
            else:
                os.environ[RESUMED] = json.dumps(arguments)
        else:
            planned = parser.parse_overrides([*self._parse_config(), *arguments])
            check_groups(planned, sys.argv[1:])
            (every,) = self.split_arguments(planned, None)
            return dict(enumerate(every)), True
        overrides = parser.parse_overrides(arguments)
        if several := [str(word.input_line) for word in overrides if word.is_sweep_override()]:
            raise RunError(f"{folder} is a sweep with jobs of its own; {', '.join(several)} would be others")
        jobs = [job for job in ledger(folder) if job.status.state not in ("finished", "running", "queued")]
        if waiting(folder):
            left = [job for job in jobs if job.status.state != "missing"]
            if len(left) < len(jobs):
                log.warning("jobs of this sweep wait in Slurm's queue; the jobs that have not begun are left to them")
            jobs = left
        check_links(folder)
        for job in jobs:
            check_words(job.overrides, arguments, folder / str(job.number))
        return {job.number: [*job.overrides, *arguments] for job in jobs}, False  # the last of a key is taken
