"""Stage 2, report: the works that the draft of the methods names, and where they appeared."""

from collections.abc import Iterable, Mapping

import yaml

from her2.core.citations import declared
from her2.report.sections.paper.prose import FOLDER


def known_works() -> Mapping[str, str]:
    """Return authors and year -> where, of the prose's own list and of what methods declare."""
    listed = yaml.safe_load((FOLDER / "references.yaml").read_text(encoding="utf-8"))
    return {**listed, **declared()}


def references(paragraphs: Iterable[str]) -> str:
    """Return the list of the works that the paragraphs name, as one more paragraph."""
    text = " ".join(paragraphs)
    found = [f"{name}, {where}" for name, where in sorted(known_works().items()) if name in text]
    return f"References. {'; '.join(found)}."
