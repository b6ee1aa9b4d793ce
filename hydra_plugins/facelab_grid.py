"""Sweeper of the project. Hydra finds sweepers only in packages of this name."""

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
    """Hydra's grid sweeper, extended by a list of jobs on disk; it starts only jobs that are not finished.

    It writes the list before it starts any job. The states in the job folders decide whether the sweep succeeded. The
    launcher's result is ignored: it counts a requeued job as failed, and one failed job ends all others.

    Args:
        max_batch_size: number of jobs that the launcher receives at a time; null for all.
        params: overrides of every job, as in ``hydra.sweeper.params``.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        super().__init__(max_batch_size=max_batch_size, params=params)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Start the jobs that are neither finished nor running.

        Args:
            arguments: the overrides as typed; for a resumed sweep, those to add to the overrides of its jobs.

        Raises:
            SystemExit: not all jobs are finished at the end, or the user made a mistake.
        """
        from facelab.runs.start import exits

        with exits():
            return self._sweep(arguments)

    def _sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run the missing jobs, show the states of all, and raise if a job has not finished."""
        from facelab.errors import RunError
        from facelab.runs.overrides import RESUME_PREFIX
        from facelab.runs.processes import search_path
        from facelab.runs.sweep import read_job_states, show, write_jobs

        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        jobs, new = self._open_jobs(folder, arguments)
        # Hydra numbers the jobs of a launch without gaps; the folder of a job keeps its number in the sweep.
        batches = [[*overrides, f"hydra.sweep.subdir={number}"] for number, overrides in jobs.items()]
        self.validate_batch_is_legal(batches)
        if new:
            write_jobs(folder, jobs, search_path(self.config.hydra))
        returns: list[Sequence[JobReturn]] = []
        try:
            for batch in self.split_overrides_to_chunks(batches, self.max_batch_size) if batches else ():
                try:
                    returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
                except Exception as error:  # a launcher that waits for jobs raises the error of one of them
                    log.debug("the launcher raised an error:", exc_info=error)
                    words = str(error).strip().splitlines() or [type(error).__name__]
                    log.warning("error of the launcher: %s", words[-1])
        finally:
            show(all_jobs := read_job_states(folder))
        if unfinished := [str(job.number) for job in all_jobs if job.status.state != "finished"]:
            raise RunError(
                f"{len(unfinished)} of {len(all_jobs)} jobs are not finished: {', '.join(unfinished)}. "
                f"python {Path(sys.argv[0]).name} -m {shlex.quote(f'{RESUME_PREFIX}{folder}')} "
                "runs missing and failed ones"
            )
        return returns

    def _open_jobs(self, folder: Path, arguments: list[str]) -> tuple[dict[int, list[str]], bool]:
        """Return the jobs to start as number to overrides, and whether the sweep is new.

        Raises:
            RunError: the command line would add jobs to a resumed sweep.
            FacelabError: a config group is set to something other than names of its options.
        """
        from facelab.errors import RunError
        from facelab.run_folder import RunFolder
        from facelab.runs.argv import with_trainer_keys
        from facelab.runs.overrides import check_links, check_words, first_job
        from facelab.runs.processes import RESUMED_WORDS, restart_with_next_stamp
        from facelab.runs.search_path import check_hydra
        from facelab.runs.sweep import jobs_are_waiting, read_job_states
        from facelab.runs.typed import check_groups

        assert self.config is not None and self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        if RunFolder(folder).sweep.exists():
            restart_with_next_stamp(folder)
            if RESUMED_WORDS in os.environ:  # the typed words follow the overrides of the first job
                arguments = arguments[len(first_job(folder)) :]
            else:
                os.environ[RESUMED_WORDS] = json.dumps(sys.argv[1:])
        else:
            planned = parser.parse_overrides([*with_trainer_keys(self._parse_config()), *arguments])
            check_groups(planned, sys.argv[1:])
            (planned_jobs,) = self.split_arguments(planned, None)
            return dict(enumerate(planned_jobs)), True
        overrides = parser.parse_overrides(arguments)
        if several := [str(word.input_line) for word in overrides if word.is_sweep_override()]:
            raise RunError(f"{folder} is a sweep with a fixed list of jobs; {', '.join(several)} would add others")
        jobs = [job for job in read_job_states(folder) if job.status.state not in ("finished", "running", "queued")]
        if jobs_are_waiting(folder):
            started = [job for job in jobs if job.status.state != "missing"]
            if len(started) < len(jobs):
                log.warning("jobs of this sweep are waiting in Slurm's queue; jobs that have not started are skipped")
            jobs = started
        check_links(folder)
        for job in jobs:
            check_words(job.overrides, arguments, folder / str(job.number))
            check_hydra([*self.config.hydra.overrides.hydra, *job.overrides, *arguments])
        return {job.number: [*job.overrides, *arguments] for job in jobs}, False  # the last override of a key applies
