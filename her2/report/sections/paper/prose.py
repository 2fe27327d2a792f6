"""Stage 2, report: fill in the plain-text templates of the prose."""

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from her2.report import format

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FOLDER = Path(__file__).parents[2] / "templates" / "methods"
_BREAKS = re.compile(r"[ \n]+")


def paragraph(template: str, facts: "DataclassInstance") -> str:
    """Return the paragraph that `{template}.txt.j2` makes of the fields of `facts`.

    Line breaks and runs of spaces become one space, so that templates can be laid out readably.
    """
    return _fill(template_environment().get_template(f"{template}.txt.j2"), facts)


def sentence(source: str, facts: "DataclassInstance") -> str:
    """Return the text that a template given as text makes of the fields of `facts`."""
    return _fill(_compiled(source), facts)


def _fill(template: jinja2.Template, facts: "DataclassInstance") -> str:
    # Not dataclasses.asdict: it would turn what the fields hold into dicts as well.
    values = {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
    return _BREAKS.sub(" ", template.render(values)).strip(" ")


@cache
def _compiled(source: str) -> jinja2.Template:
    return template_environment().from_string(source)


@cache
def template_environment() -> jinja2.Environment:
    """Return what all prose is rendered in; it keeps the templates that it has compiled."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=False,  # plain text; the page escapes it
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": format.count,
        "plural": format.plural,
        "percent": format.percent,
        "listed": format.listed,
        "g": lambda value: f"{value:g}",
        "was": lambda number: "was" if number == 1 else "were",
        "has": lambda number: "has" if number == 1 else "have",
        "capitalised": lambda text: text[:1].upper() + text[1:],
    }
    return environment
