"""Stage 2, report: find the sections, collect what they show, and lay out the page.

Equal results give equal bytes: the page holds no host names, no folders of the machine, and no
times except those that the feature stores record about how they were made.
"""

import base64
import hashlib
import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.bccache import Bucket, BytecodeCache

from her2.config import Config
from her2.report import format, sections
from her2.report.figures.base import Figure, Picture
from her2.report.results import Results
from her2.report.section import Link, Section
from her2.report.sections import headline, overlap

_FOLDER = Path(__file__).parent


class _Compiled(BytecodeCache):
    """Templates that this process has compiled, since that takes longer than to fill them in."""

    def __init__(self) -> None:
        self._codes: dict[tuple[str, str], bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if code := self._codes.get((bucket.key, bucket.checksum)):
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._codes[bucket.key, bucket.checksum] = bucket.bytecode_to_string()


_COMPILED = _Compiled()


@dataclass(frozen=True, slots=True)
class PageContext:
    """Facts that every section of a page may use, made once from the results.

    `protocol` says how patients were divided, `confidence` is the level of all intervals, as
    `95 %`, `repeats` is 1 for a fixed split, and `footnotes` explain the mark of some encoders.
    """

    config: Config
    software: str
    synthetic: bool
    protocol: str
    confidence: str
    repeats: int
    footnotes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShownSection:
    """A section with the data of a run; `name` is that of its module and template."""

    name: str
    section: Section[Any]
    data: Any

    @property
    def heading(self) -> str:
        """Return the title, or the heading that the section derives from its data."""
        make = self.section.heading
        return make(self.data) if make else self.section.title

    @property
    def links(self) -> Sequence[Link]:
        """Return the section's entries in the navigation."""
        make = self.section.links
        if make:
            return make(self.data)
        return (Link(self.section.short_title or self.section.title, self.section.anchor),)


def find_sections() -> dict[str, Section[Any]]:
    """List the modules of `her2.report.sections` that declare a section, in the page's order.

    Raises:
        LookupError: a section has no template or a template no section, or two sections share
            their order, their anchor or a table.
    """
    modules = {
        info.name: importlib.import_module(f"{sections.__name__}.{info.name}")
        for info in pkgutil.iter_modules(sections.__path__)
    }
    found: dict[str, Section[Any]] = {
        name: module.SECTION for name, module in modules.items() if hasattr(module, "SECTION")
    }
    templates = {
        path.name.removesuffix(".html.j2")
        for path in (_FOLDER / "templates" / "sections").glob("*.html.j2")
    }
    if unpaired := sorted(templates ^ found.keys()):
        raise LookupError(
            f"her2/report: {', '.join(unpaired)}: a section is a module in sections/ with SECTION "
            "and a template of the same name in templates/sections/"
        )
    claims = Counter(
        claim
        for section in found.values()
        for claim in (
            f"order {section.order}",
            f"anchor {section.anchor}",
            *(f"table {name}" for name in section.tables),
        )
    )
    if shared := [claim for claim, number in claims.items() if number > 1]:
        raise LookupError(f"her2/report/sections: more than one section has {', '.join(shared)}")
    return dict(sorted(found.items(), key=lambda item: item[1].order))


def collect_sections(results: Results) -> tuple[ShownSection, ...]:
    """Collect the data of every section that the page shows."""
    collected = (
        ShownSection(name, section, section.collect(results))
        for name, section in find_sections().items()
    )
    return tuple(shown for shown in collected if shown.section.is_shown(shown.data))


def page_context(results: Results) -> PageContext:
    """Return the facts that all sections of a page share."""
    return PageContext(
        config=results.config,
        software=results.software,
        synthetic=results.synthetic,
        protocol=headline.protocol(results),
        confidence=f"{100 * results.config.evaluation.confidence:g} %",
        repeats=1 if results.split else results.config.folds.repeats,
        footnotes=overlap.footnotes(results),
    )


def script() -> str:
    """Return the page's only script; everything on the page can be read without it."""
    parts = ("page.js", "gallery.js")  # tables and pictures, then the gallery
    return "".join((_FOLDER / name).read_text(encoding="utf-8") for name in parts)


def template_environment(figure_uris: Mapping[str, str]) -> jinja2.Environment:
    """Return what the page's templates are rendered in; `figure_uris` as in `render`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        bytecode_cache=_COMPILED,
    )

    def uri(picture: Figure | Picture) -> str:
        return picture.uri if isinstance(picture, Picture) else figure_uris[picture.name]

    environment.filters |= {"count": format.count, "plural": format.plural, "uri": uri}
    return environment


def render(
    context: PageContext, shown: Sequence[ShownSection], figure_uris: Mapping[str, str]
) -> str:
    """Return the page: self-contained HTML with one script that is pinned by its hash.

    `figure_uris` is name of a figure -> its picture as a data URI.
    """
    environment = template_environment(figure_uris)
    digest = hashlib.sha256(script().encode()).digest()  # the policy allows no other script
    environment.globals["page"] = context
    return environment.get_template("page.html.j2").render(
        style=(_FOLDER / "style.css").read_text(encoding="utf-8"),
        script=script(),
        script_hash=f"sha256-{base64.b64encode(digest).decode('ascii')}",
        sections=shown,
    )
