"""Stage 2, report: attention pictures, shrunk to fit on one page."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import polars as pl

from her2.config.names import run_name
from her2.explanation.listing import ATTENTION, TRUTH
from her2.report.figures.base import Figure, Picture, jpeg
from her2.report.figures.controls import faithfulness_figure
from her2.report.format import number, plural, without_folders
from her2.report.results import Results
from her2.report.sections.overlap import mark
from her2.report.shown_model import ShownModel

ATTENTION_SHOWN = 24
"""Maximum number of attention pictures on the page, over all models; the others stay files."""
_ATTENTION_PX = (1200, 800)
_STRIP_PX = (800, 600)


@dataclass(frozen=True, slots=True)
class AttentionPicture:
    """The attention picture of one slide: the panels that `heatmaps.json` names, side by side.

    `by` says which model's attention it is.
    """

    slide_id: str
    anchor: str
    label: str
    predicted: str
    probabilities: tuple[tuple[str, str], ...]
    by: str
    tiles: int
    note: str
    figure: Picture
    strip: Picture | None


@dataclass(frozen=True, slots=True)
class ScoreTiles:
    """The most and least attended tiles of all held-out slides of a score, or a reason."""

    words: str
    figure: Picture | None


@dataclass(frozen=True, slots=True)
class ModelPictures:
    """The pictures of one encoder and head; `not_drawn` holds (slide, reason).

    `folder` has all of them, in the results.
    """

    name: str
    folder: str
    mark: str
    anchor: str
    pictures: tuple[AttentionPicture, ...]
    scores: tuple[ScoreTiles, ...]
    curves: Figure | None
    not_drawn: tuple[tuple[str, str], ...]
    left_out: int
    has_truth: bool


@lru_cache(maxsize=1)
def all_pictures(results: Results) -> tuple[ModelPictures, ...]:
    """Read the pictures of all models, once, since the warnings need the missing ones too."""
    share = max(1, ATTENTION_SHOWN // len(results.models))
    return tuple(model_pictures(results, model, share) for model in results.models)


def model_pictures(
    results: Results, model: ShownModel, shown_at_most: int, *, held_out: bool = True
) -> ModelPictures:
    """Return the pictures that `heatmaps.json` lists.

    `held_out` is true for slides of the development, each of which is tested in one fold.
    """
    drawn = [item for item in model.heatmaps if "picture" in item]
    not_drawn = [
        (str(item["slide_id"]), without_folders(str(item.get("reason", "no reason recorded"))))
        for item in model.heatmaps
        if "picture" not in item
    ]
    shown = _spread(drawn, shown_at_most)
    pictures = []
    for item in shown:
        try:
            pictures.append(_picture(results, model, item, held_out=held_out))
        except OSError:
            not_drawn.append((str(item["slide_id"]), "its picture cannot be read"))
    return ModelPictures(
        name=model.name,
        folder=model.pictures.relative_to(results.folder).as_posix(),
        mark=mark(results, model.encoder),
        anchor=model.anchor.replace("model/", "attention/", 1),
        pictures=tuple(pictures),
        scores=tuple(_score(model, item, held_out=held_out) for item in model.scores),
        curves=faithfulness_curves(results, model),
        not_drawn=tuple(sorted(not_drawn)),
        left_out=len(drawn) - len(shown),
        has_truth=any(TRUTH in _panels(item) for item in shown),
    )


def _spread(items: list[dict[str, object]], number_: int) -> list[dict[str, object]]:
    """Return evenly spaced items; as they are sorted by class, each class keeps its share."""
    if len(items) <= number_:
        return items
    return [items[i * len(items) // number_] for i in range(number_)]


def _picture(
    results: Results, model: ShownModel, item: dict[str, Any], *, held_out: bool
) -> AttentionPicture:
    slide_id = item["slide_id"]
    rows = model.slides.filter(pl.col("slide_id") == slide_id).to_dicts()
    names = model.task.class_names
    probabilities = [(name, number(rows[0][f"prob_{name}"], 2)) for name in names] if rows else []
    strip, unreadable = _strip(model, item)
    notes = (without_folders(str(item.get("note", ""))), unreadable)
    titles = {ATTENTION: "rank of attention", TRUTH: truth_words(results)}
    shown = ", ".join(titles.get(name, name) for name in _panels(item))
    return AttentionPicture(
        slide_id=slide_id,
        anchor=f"{model.anchor.replace('model/', 'picture/', 1)}/{slide_id}",
        label=item["label"] or "class not known",
        predicted=names[rows[0]["predicted"]] if rows else item.get("predicted") or "",
        probabilities=tuple(probabilities),
        by=f"fold {run_name(0, item['fold'])}"
        if held_out
        else f"mean attention of {plural(item['models'], 'model')}",
        tiles=item["tiles"],
        figure=jpeg(
            model.pictures / str(item["picture"]),
            side_px=_ATTENTION_PX,
            quality=76,
            alt=f"{slide_id}: {shown}",
        ),
        note="; ".join(text for text in notes if text),
        strip=strip,
    )


def _strip(model: ShownModel, item: Mapping[str, Any]) -> tuple[Picture | None, str]:
    """Return the most and least attended tiles of a slide, or the reason for their absence."""
    if not item.get("tile_strip"):
        return None, ""
    alt = f"{item['slide_id']}: its most and least attended tiles"
    with suppress(OSError):
        path = model.pictures / str(item["tile_strip"])
        return jpeg(path, side_px=_STRIP_PX, quality=72, alt=alt), ""
    return None, "the picture of its tiles cannot be read"


def _score(model: ShownModel, item: Mapping[str, Any], *, held_out: bool) -> ScoreTiles:
    """Return what a row of `tiles.json` lists."""
    noun = "held-out slide" if held_out else "slide"
    people = f"{plural(item['slides'], noun)} of {plural(item['patients'], 'patient')}"
    words = f"Score {item['label']}: {people}"
    if item.get("picture"):
        alt = f"{words}: most and least attended tiles"
        with suppress(OSError):
            path = model.pictures / str(item["picture"])
            return ScoreTiles(words, jpeg(path, side_px=_STRIP_PX, quality=76, alt=alt))
        words += "; the picture of its tiles cannot be read"
    elif item.get("note"):
        words += f"; {item['note']}"
    return ScoreTiles(words, None)


def _panels(item: Mapping[str, Any]) -> Sequence[str]:
    names: Sequence[str] = item["panels"]
    return names


def truth_words(results: Results) -> str:
    """Return what the yellow tint of the ground-truth panel stands for."""
    if results.synthetic:
        return "planted HER2-positive morphology"
    return "annotated positive area (cohort.masks)"


def faithfulness_curves(results: Results, model: ShownModel) -> Figure | None:
    """Return one model's deletion and insertion curves; None where attention is uniform."""
    table = model.attention["faithfulness"].filter(pl.col("value").is_not_null())
    if not len(table):
        return None
    found: dict[str, dict[str, pl.DataFrame]] = {}
    for curve, order in table.select("curve", "order").unique(maintain_order=True).iter_rows():
        own = (pl.col("curve") == curve) & (pl.col("order") == order)
        found.setdefault(curve, {})[order] = table.filter(own).sort("share")
    return faithfulness_figure(found, model.name, results.figure_context)
