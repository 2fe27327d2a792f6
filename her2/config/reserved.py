"""Config: names that cannot be folders or files of the results, beside those already there."""

from collections.abc import Iterable, Mapping

PUBLISHED = ".as-published"
"""Suffix of tasks and heads in the published protocol."""
FILES = frozenset(
    [
        ".csv",
        ".html",
        ".json",
        ".jsonl",
        ".log",
        ".parquet",
        ".safetensors",
        ".svg",
        ".pdf",
        ".png",
        ".tsv",
        ".txt",
        ".zip",
        ".zarr",
    ]
)
"""Suffixes of what the workflow writes: a task called comparison.csv would be a folder where
`evaluation/comparison.csv` is a file."""
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))]
)
"""Names that a shared disk of Windows refuses, with any suffix."""


def name_problems(names: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Return the problems of names that become folders: section -> names; as (key, problem)."""
    found = []
    for section, listed in names.items():
        first: dict[str, str] = {}
        for name in listed:
            problem = _problem(name)
            other = first.setdefault(name.lower(), name)
            if problem is None and other != name:
                problem = (
                    f"differs from {other!r} only by case, and some disks take both for one "
                    "folder; choose another name"
                )
            if problem is not None:
                found.append((f"{section}.{name}", problem))
    return found


def _problem(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith(PUBLISHED):
        return f"the ending {PUBLISHED} is reserved; choose another name"
    if lower == "stamps":
        return "is the name of a folder of the results; choose another name"
    ending = next((suffix for suffix in FILES if lower.endswith(suffix)), None)
    if ending is not None:
        return (
            f"ends in {ending}, like a file of the results, and would be a folder; choose another "
            "name, without this ending"
        )
    if name.endswith("."):
        return "ends in a dot, which some disks drop; choose another name"
    if lower.split(".")[0] in _DEVICES:
        return "is the name of a device on some systems; choose another name"
    return None
