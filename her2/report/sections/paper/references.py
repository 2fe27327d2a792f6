"""Stage 2, report: the works that the methods draft cites, and where they appeared."""

from collections.abc import Iterable, Mapping

import yaml

from her2.config.heads import HEADS
from her2.explanation.citations import REFERENCES
from her2.filters.registry import LISTED
from her2.metrics import all_metrics
from her2.report.sections.paper.prose import FOLDER
from her2.segmenters import ARTEFACT_NAMES, NAMES, artefact_segmenter, segmenter


def known_works() -> Mapping[str, str]:
    """Return authors and year -> where the work appeared.

    The prose has its own list; heads, filters, segmenters, metrics and explanation measures
    declare theirs.
    """
    listed: dict[str, str] = yaml.safe_load(
        (FOLDER / "references.yaml").read_text(encoding="utf-8")
    )
    owned = [
        REFERENCES,
        *(head.citations for head in HEADS.values()),
        *(one.references for one in LISTED),
        *(dict([segmenter(name).reference]) for name in NAMES),
        *(dict([artefact_segmenter(name).reference]) for name in ARTEFACT_NAMES),
        *(metric.references for metric in all_metrics()),
    ]
    return listed | {work: where for works in owned for work, where in works.items()}


def references(paragraphs: Iterable[str]) -> str:
    """Return the list of the works that the paragraphs cite, as one more paragraph."""
    text = " ".join(paragraphs)
    found = [f"{name}, {where}" for name, where in sorted(known_works().items()) if name in text]
    return f"References. {'; '.join(found)}."
