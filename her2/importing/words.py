"""What an import tells: how many slides, at which um/px, from where, with which labels."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from her2.cohort.cautions import cautions
from her2.core.spelling import printable
from her2.importing.found import Found, ImportedSlide
from her2.importing.opening import Opening, seen

_SHOWN = 12
_GROUPS = ("site", "scanner", "split")


def summary(name: str, found: Found, opened: Sequence[Opening]) -> list[str]:
    """Return the lines that `her2 import` prints."""
    slides = found.slides
    patients = {one.patient_id for one in slides}
    lines = [f"{name}: {len(slides):,} slides of {len(patients):,} patients"]
    kept = {one.slide_id for one in slides}
    shown = [one for one in opened if one.slide_id in kept]
    filled = [name for name in _GROUPS if any(getattr(one, name) for one in slides)]
    labels = dict.fromkeys(name for one in slides for name in one.labels)
    table = [
        ("um/px", _counted(map(_scale, shown))),
        ("levels", _counted(str(one.levels) for one in shown)),
        ("format", _counted(one.vendor for one in shown)),
        *((name, _counted(getattr(one, name) for one in slides)) for name in filled),
        *((name, _counted(one.labels.get(name, "") for one in slides)) for name in labels),
    ]
    width = max(len(column) for column, _ in table)
    lines += [f"  {printable(column):{width}}  {printable(words)}" for column, words in table]
    lines += _listed("rule", "rules", found.rules, every=True)
    lines += _listed("conflict", "conflicts", found.conflicts)
    lines += _listed(
        "left out", "left out", [f"{one.name}: {one.reason}" for one in found.left_out]
    )
    excluded = [f"{one.slide_id}: {reason}" for one in shown for reason in one.excluded]
    lines += _listed("caution", "cautions", [*cautions([seen(one) for one in shown])], every=True)
    what = "that a run with this config leaves out"
    lines += _listed(f"slide {what}", f"slides {what}", excluded)
    return lines


def label_counts(slides: Sequence[ImportedSlide]) -> dict[str, dict[str, int]]:
    """Return label column -> value -> number of slides; "" for those without."""
    names = dict.fromkeys(name for one in slides for name in one.labels)
    return {
        name: dict(sorted(Counter(one.labels.get(name, "") for one in slides).items()))
        for name in names
    }


def _scale(one: Opening) -> str:
    if one.mpp is None:
        return "none"
    x, y = (f"{value:.4g}" for value in one.mpp)
    return f"{x if x == y else f'{x} x {y}'} ({one.mpp_source})"


def _counted(values: Iterable[str]) -> str:
    """Return `a 3, b 1`, the most frequent first; `no value` for empty ones."""
    counts = Counter(values)
    shown = counts.most_common(_SHOWN)
    more = f", {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
    return ", ".join(f"{value or 'no value'}: {count:,}" for value, count in shown) + more


def _listed(one: str, many: str, lines: Collection[str], *, every: bool = False) -> Iterator[str]:
    """Yield a heading with the number of lines, and the lines; the file has those not shown."""
    if not lines:
        return
    shown = list(lines) if every else list(lines)[:_SHOWN]
    yield f"{len(lines):,} {one if len(lines) == 1 else many}:"
    for line in shown:
        yield f"  - {printable(line)}"
    if len(lines) > len(shown):
        yield f"  ... and {len(lines) - len(shown):,} more, see import.json"
