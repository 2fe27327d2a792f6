"""Beside every stage: what the terminal shows of a run, from its beginning to its end."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from snakemake.exceptions import WorkflowError

from her2.core.errors import UserError
from her2.pipeline.claim import HeldClaim, claim_results, lock_words, release_claim_of
from her2.pipeline.clocks import set_back
from her2.pipeline.current import Currency, summary
from her2.pipeline.endings import explained, is_lock
from her2.pipeline.job_table import RULES, planned_job
from her2.pipeline.lines import failure_lines, working_lines
from her2.pipeline.plan import Plan
from her2.pipeline.record import RECORD_NAME, begin_run, end_run, planned_jobs
from her2.pipeline.run_log import RunLog
from her2.pipeline.status import RunProgress, failures

EVERY_SECONDS = 20.0


class ProgressPrinter:
    """A printer of a run's progress, driven by the hooks of the Snakefile.

    On a terminal it prints a line per stage at work, every few seconds and from a thread of its
    own. Redirected output gets no such lines. At the end it lists the jobs that failed, and
    explains an error that stopped the run or kept it from beginning.
    """

    def __init__(
        self, plan: Plan, stream: TextIO = sys.stderr, *, every: float = EVERY_SECONDS
    ) -> None:
        self._plan, self._stream, self._every = plan, stream, every
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._log = RunLog(self.close, self._unlocked)
        self._claim: HeldClaim | None = None
        self._run: RunProgress | None = None
        self._record_ns = _written_ns(plan.config.results / RECORD_NAME)
        self._finished: Callable[[], tuple[int, ...]] = tuple

    def listen(self) -> None:
        """Hear what Snakemake says, from now until it ends."""
        self._log.listen()

    def begin(self, workflow: Any) -> None:
        """Claim the results folder, record the jobs of the run, and follow it.

        Raises:
            WorkflowError: another run is at work in the results folder.
        """
        results = self._plan.config.results
        try:
            self._claim = claim_results(results, self._say)
            if _written_ns(results / RECORD_NAME) != self._record_ns:
                raise UserError(
                    f"{results}: another run worked here since this one was planned. Run the same "
                    "command again, so that it is planned anew."
                )
            planned = planned_jobs(workflow, self._plan)
            record = begin_run(workflow, results, tuple(job for job, _ in planned))
        except UserError as error:
            raise WorkflowError(str(error)) from None
        self._log.follow(
            (job, workflow.dag.jobid(own), map(str, own.output)) for job, own in planned
        )
        self._tell_outdated(workflow, [own for _, own in planned])
        # Its events do not say so where it is to be quiet.
        self._finished = lambda: tuple(
            index for index, (_, own) in enumerate(planned) if workflow.dag.finished(own)
        )
        self._set_clocks(workflow, int(record.began_on_disk * 1e9))
        self._run = RunProgress(record)
        if self._stream.isatty():
            self._thread = threading.Thread(target=self._follow, args=(self._run,), daemon=True)
            self._thread.start()

    def end(self, *, succeeded: bool) -> None:
        """Record the end of the run, and print failed jobs with their reasons and logs."""
        if self._run is None:
            return
        run, self._run = self._run, None
        self._over.set()
        if self._thread is not None:
            self._thread.join()  # it shares the read positions of the event files
        finished = self._finished()
        run.record = replace(
            run.record,
            ended=time.time(),
            succeeded=succeeded,
            reasons={i: why for i, why in self._log.reasons.items() if i not in finished},
            finished=finished,
        )
        try:
            end_run(run.record, self._plan.config.results)
        except UserError as error:  # a full disk: the failed jobs are listed all the same
            self._say(f"her2: {error}")
        if not succeeded and (failed := failures(run.close())):
            self._say("\n".join(["", f"{len(failed)} job(s) failed:", *failure_lines(failed)]))

    def close(self) -> None:
        """Snakemake has ended: end what no hook has ended, and explain an error of no job."""
        try:
            self.end(succeeded=False)
        finally:
            if self._claim is not None:
                self._claim.release()
        words = explained(self._log.error)
        if words and is_lock(self._log.error):
            words = lock_words(self._plan.config.results) or words
        if words:
            self._say(f"\nher2: {words}")

    def _unlocked(self) -> None:
        release_claim_of(self._plan.config.results, Path.cwd())

    def _tell_outdated(self, workflow: Any, planned: list[Any]) -> None:
        """Say which jobs run for no reason that Snakemake knows of, and why they do."""
        check = Currency(self._plan)
        forced = [job for job in planned if workflow.dag.reason(job).forced]
        found = [
            check.outdated(planned_job(job.rule.name, job.wildcards_dict))
            for job in forced
            if job.rule.name in RULES
        ]
        for line in summary(one for one in found if one is not None and one.stamped):
            self._say(f"her2: {line}")

    def _set_clocks(self, workflow: Any, present_ns: int) -> None:
        """Set files of the results that are from the future to the present, and say so."""
        outputs = (Path(str(path)) for job in workflow.dag.jobs for path in job.output)
        if found := set_back(outputs, present_ns):
            self._say(
                f"her2: {len(found)} file(s) of the results were dated in the future, from a clock "
                f"that was ahead, and are set to the present: {found[0]}"
                + (", ..." if len(found) > 1 else "")
            )

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _follow(self, run: RunProgress) -> None:
        shown: list[str] = []
        while not self._over.wait(self._every):
            lines = working_lines(run.update(), time.time())
            if lines != shown:
                print("\n".join(lines), file=self._stream, flush=True)
                shown = lines


def _written_ns(path: Path) -> int | None:
    """Return when a file was written, in ns; None if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
