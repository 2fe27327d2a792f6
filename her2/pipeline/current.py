"""Before every stage: which results are not those of the present config, manifest and files.

Snakemake re-plans a job whose parameters changed only while it has its own records, which lie in a
hidden folder of the working directory. The stamps in the results say the same, and more, wherever
the results were copied: a job is current if its stamp has the spec that the plan has now, and if
what the job read and wrote still has the content it had then.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from her2.core.stamps import Stamp, file_size, read_stamp, short_digest
from her2.pipeline.job_table import PlannedJob, planned_jobs
from her2.pipeline.plan import Plan


@dataclass(frozen=True, slots=True)
class Outdated:
    """A job that has to run again, and why: a reason, and the changed keys as `old -> new`.

    `stamped` is False for a job that may never have run.
    """

    job: PlannedJob
    reason: str
    changes: tuple[str, ...] = ()
    stamped: bool = True


class Currency:
    """The check of a plan's jobs against their stamps, which reads each file once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._root = plan.config.results
        self._digests: dict[str, str | None] = {}
        self._found: dict[PlannedJob, Outdated | None] = {}

    def outdated(self, job: PlannedJob) -> Outdated | None:
        """Return why a job has to run again, or None if what it made is current."""
        if job not in self._found:
            self._found[job] = self._check(job)
        return self._found[job]

    def _check(self, job: PlannedJob) -> Outdated | None:
        stamp = read_stamp(job.stamp(self._root))
        if stamp is None or stamp.job != job.place:
            reason = "nothing says which config its results were made with"
            return Outdated(job, reason, stamped=stamp is not None)
        now = json.loads(job.spec(self._plan))
        if stamp.spec != now:
            changes = tuple(spec_changes(stamp.spec, now))
            return Outdated(job, "its results were made with another config", changes)
        return self._changed_file(job, stamp)

    def _changed_file(self, job: PlannedJob, stamp: Stamp) -> Outdated | None:
        for name, content in stamp.made.items():
            if self._content(name, content) != content:
                return Outdated(job, f"its result {name} was changed or removed")
        for name, digest in stamp.read.items():
            if self._content(name, digest) != digest:
                return Outdated(job, f"its input {name} has changed since")
        return None

    def _content(self, name: str, wanted: str) -> str | None:
        """Return the content of a result in the form of `wanted`; None if it cannot be read."""
        path = self._root / name
        try:
            if wanted.endswith(" bytes"):
                return file_size(path)
            if name not in self._digests:
                self._digests[name] = short_digest(path) if path.is_file() else None
        except OSError:  # absent, or another user's: the job runs again, and says what is wrong
            return None
        return self._digests[name]


def outdated_jobs(plan: Plan, *, unstamped: bool = False) -> list[Outdated]:
    """Return the jobs whose results are not current.

    Jobs without a stamp of their own, which may not have run yet, are left out unless `unstamped`.
    Jobs that depend on the others run again as well, and are not listed.
    """
    check = Currency(plan)
    found = (check.outdated(job) for job in planned_jobs(plan))
    return [one for one in found if one is not None and (one.stamped or unstamped)]


def summary(found: Iterable[Outdated]) -> list[str]:
    """Return a line per rule and reason: how many jobs run again, and what has changed."""
    counts = Counter(
        (one.job.rule, one.reason if one.changes else _in_general(one.reason), one.changes[:2])
        for one in found
    )
    return [
        f"{rule}, {count:,} job(s): {'; '.join((reason, *changes))}"
        for (rule, reason, changes), count in counts.items()
    ]


def _in_general(reason: str) -> str:
    """Return a reason without the file that it names."""
    return " ".join(word for word in reason.split() if "/" not in word)


def spec_changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield `tiling.min_tissue: 0.3 -> 0.31` for each value in which two specs differ."""
    before, now = _flat(old), _flat(new)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key):
            continue
        if key == "rows":
            yield "rows of the manifest: other rows, or other values in them"
        elif key == "files":
            yield "files: another file, size or modification time"
        else:
            yield f"{key}: {_short(before.get(key))} -> {_short(now.get(key))}"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    parts = [_flat(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items()]
    return {key: item for part in parts for key, item in part.items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return f"{text[:60]}..." if len(text) > 60 else text
