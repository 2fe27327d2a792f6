"""Before every stage and in the folds: the manifest's column `split` as roles of patients."""

from collections.abc import Iterable

from her2.cohort.manifest import SlideRow

SPLITS = {"train": "train", "tune": "tune", "val": "tune", "validation": "tune", "test": "test"}
"""Values of the manifest's column `split` (in any case)."""
SPLIT_RULE = (
    "the manifest's column 'split' defines the split (folds.split: use), so each labelled slide "
    f"needs one of {', '.join(SPLITS)}, the same for all slides of a patient; fix the column, or "
    "set `folds.split: ignore` for cross-validation"
)
"""What the column must hold, and what to do where it does not."""


def split_roles(rows: Iterable[SlideRow]) -> tuple[dict[str, str], list[str]]:
    """Return patient -> train, tune or test for labelled slides, and the problems of the column.

    Patients with a problem have no role.
    """
    found: dict[str, set[str]] = {}
    problems = []
    for row in rows:
        role = SPLITS.get((row.split or "").lower())
        if role is None:
            value = repr(row.split) if row.split else "is empty"
            problems.append(f"slide {row.slide_id}, column 'split': {value}")
        else:
            found.setdefault(row.patient_id, set()).add(role)
    problems += [
        f"patient {name}: has slides in {' and '.join(sorted(parts))}"
        for name, parts in sorted(found.items())
        if len(parts) > 1
    ]
    return {name: next(iter(parts)) for name, parts in found.items() if len(parts) == 1}, problems


def split_problem(rows: Iterable[SlideRow]) -> str:
    """Return what is wrong with the column if it has any value, and the fix; else ""."""
    known = list(rows)
    if not any(row.split for row in known):
        return ""
    _, problems = split_roles(row for row in known if row.labels)
    return f"{SPLIT_RULE}: {'; '.join(problems)}" if problems else ""
