"""Stage 1, encoder: the catalogue in words, for `her2 encoders` and docs/encoders.md.

`python -m her2.config.encoder_page docs/encoders.md` renews the table of that page.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from her2.config.catalogue import CatalogueRow, catalogue

DOMAINS = {"he": "H&E", "he_ihc": "H&E + IHC", "ihc": "IHC", "natural": "natural", "none": "none"}
BASIS = {
    "stated": "stated by its authors",
    "from_magnification": "from the magnification that its authors state; 20x is taken for 0.5",
    "convention": "its authors state none; 0.5 is what others use",
}
FEATURES = {
    "pooled": "pooled",
    "class_token": "class token",
    "class_and_mean": "class token and mean of the patch tokens",
    "flattened": "feature maps, flattened",
}

Column = tuple[str, Callable[[CatalogueRow], str]]

COLUMNS: tuple[Column, ...] = (
    ("name", lambda row: row.name),
    ("trained on", lambda row: DOMAINS[row.domain]),
    ("architecture", lambda row: f"{row.library}/{row.architecture}"),
    ("feature", lambda row: row.feature),
    ("dimension", lambda row: str(row.dimension)),
    ("px", lambda row: str(row.size)),
    ("um/px", lambda row: scales(row) or "-"),
    ("licence", lambda row: row.licence),
    ("commercial", lambda row: row.commercial),
    ("access", lambda row: f"ask: {row.ask_at}" if row.gated else "open"),
)
_RIGHT = {"dimension", "px"}
_BEGIN = "<!-- the catalogue: python -m her2.config.encoder_page docs/encoders.md -->"
_END = "<!-- end of the catalogue -->"


def chosen(
    *, ungated: bool = False, commercial: bool = False, domain: str | None = None
) -> list[CatalogueRow]:
    """Return the rows that fit all that is asked for, in the file's order.

    Args:
        ungated: only weights that anybody can download.
        commercial: only weights that may be used commercially, if only under conditions.
        domain: only encoders trained on such images, among others: `ihc` also finds `he_ihc`.
    """
    return [
        row
        for row in catalogue().values()
        if not (ungated and row.gated)
        and not (commercial and row.commercial == "no")
        and (domain is None or domain in row.domain.split("_"))
    ]


def table(rows: Iterable[CatalogueRow] | None = None) -> str:
    """Return rows, by default all, as plain text, one line per encoder."""
    head = [title for title, _ in COLUMNS]
    lines = [head, *_cells(catalogue().values() if rows is None else rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if title in _RIGHT else cell.ljust(width)
            for cell, width, title in zip(line, widths, head, strict=True)
        ).rstrip()
        for line in lines
    )


def explained(row: CatalogueRow) -> str:
    """Return all that is known of a row, one fact a line, with what a config would say."""
    facts = [
        ("what", row.title),
        ("network", f"{row.library}/{row.architecture}, {_arguments(row)}"),
        ("trained on", f"{DOMAINS[row.domain]}"),
        ("input", f"{row.size} px at {scales(row)} um/px" if row.mpp else f"{row.size} px"),
        ("um/px", BASIS[row.mpp_basis] if row.mpp_basis else "not trained on microscope images"),
        ("features", f"{row.dimension}: {FEATURES[row.feature]}"),
        ("mean, std", f"{_triple(row.mean)}, {_triple(row.std)}"),
        ("precision", f"{row.precision} suffices; stored as {row.storage}"),
        ("weights", _weights(row)),
        ("SHA-256", _pin(row)),
        *(("also", f"{digest} ({name})") for name, digest in row.also_sha256.items()),
        ("licence", row.licence),
        ("commercial", f"{row.commercial}{f': {row.terms}' if row.terms else ''}"),
        ("access", f"to be asked for at {row.ask_at}" if row.gated else "open"),
        ("paper", row.paper or "none yet"),
        ("card", row.card),
        ("checked", row.checked),
        ("note", row.note or ""),
    ]
    width = max(len(title) for title, _ in facts)
    lines = [f"{title.ljust(width)}  {text}" for title, text in facts if text]
    scale = "" if row.mpp else ", mpp: 0.5"
    own = f"{{ source: catalogue, model: {row.name}{scale} }}"
    return "\n".join([row.name, "", *lines, "", "In a config:", f"    encoders: {{ mine: {own} }}"])


def scales(row: CatalogueRow) -> str:
    """Return the um/px that an encoder was trained at, in ascending order; "" without any."""
    if row.mpp is None:
        return ""
    return ", ".join(f"{scale:g}" for scale in sorted({row.mpp, *row.also_mpp}))


def with_table(page: str) -> str:
    """Return a Markdown page with the table of all rows between its two marks."""
    columns: tuple[Column, ...] = (
        ("name", lambda row: f"[`{row.name}`]({row.card})"),
        ("what", lambda row: row.title),
        ("trained on", lambda row: DOMAINS[row.domain]),
        ("features", lambda row: f"{row.dimension:,}"),
        ("um/px", lambda row: scales(row) or "-"),
        ("of the um/px", lambda row: (row.mpp_basis or "-").replace("_", " ")),
        ("licence", lambda row: row.licence),
        ("commercial use", lambda row: row.terms or row.commercial),
        ("access", lambda row: "to be asked for" if row.gated else "open"),
        ("checked against", _digits),
    )
    head = [title for title, _ in columns]
    body = [[cell(row) for _, cell in columns] for row in catalogue().values()]
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]
    before, _, rest = page.partition(_BEGIN)
    return "\n".join([before + _BEGIN, *lines, _END + rest.partition(_END)[2]])


def _cells(rows: Iterable[CatalogueRow]) -> list[list[str]]:
    return [[cell(row) for _, cell in COLUMNS] for row in rows]


def _arguments(row: CatalogueRow) -> str:
    said = [f"{name} {value}" for name, value in row.arguments.items() if value != ""]
    return ", ".join(said) or "as the library builds it"


def _triple(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _weights(row: CatalogueRow) -> str:
    if row.hub is None:
        return f"fetched by {row.library}"
    return f"{row.hub}, {row.file}, revision {row.revision or 'not known: the present one'}"


def _pin(row: CatalogueRow) -> str:
    if row.sha256 is None:
        return f"not checked: {row.unpinned}"
    return row.sha256 if len(row.sha256) == 64 else f"{row.sha256}... (no more digits are known)"


def _digits(row: CatalogueRow) -> str:
    if row.sha256 is None:
        return "nothing"
    return "SHA-256" if len(row.sha256) == 64 else f"{len(row.sha256)} digits of the SHA-256"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
