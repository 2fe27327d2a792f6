"""Stage 2, heatmaps: attention to one slide, for scripts and notebooks."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from her2.config import HeatmapFormat
from her2.core.crashes import reading
from her2.core.errors import SlideError, UserError, check_kind
from her2.core.images import open_image
from her2.core.section import NAME_PATTERN, is_name
from her2.explanation.drawing import Drawing, chosen_formats, draw_slide
from her2.explanation.tiles import NOWHERE, SlideTiles, tiles_of_store
from her2.frozen.model import FrozenPrediction
from her2.slides.fingerprint import fingerprint
from her2.slides.slide import Slide
from her2.storage.features import FeatureStore

_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class NamedSlide:
    """A slide as pictures name it, with who explains it, to end a sentence."""

    slide_id: str
    by: str
    label: str | None = None
    models: Mapping[str, object] = field(default_factory=dict)

    @property
    def patient_id(self) -> str:
        """Return the slide's own id: nobody said whose it is."""
        return self.slide_id


def draw_heatmap(
    store: FeatureStore,
    attention: FrozenPrediction | NDArray[np.floating],
    slide: Slide | Path | str,
    *,
    out: Path | str | None = None,
    formats: Sequence[HeatmapFormat] = ("png", "geojson"),
    name: str | None = None,
    label: str | None = None,
    synthetic: bool = False,
) -> Image.Image:
    """Draw attention over a slide, as `her2 heatmaps` does, and write it if a folder is given.

    Args:
        store: the features of the slide, whose tiles (n) the attention is of.
        attention: what a model predicted, or any weights (n,), not negative, that sum to one.
        slide: the slide, or its file.
        out: folder for `slides/{name}.png`, `slides/{name}.geojson` (and so on), and
            `strips/{name}.png`, the most and the least attended tiles; None: nothing is written.
        formats: of png, geojson, parquet and ome_tiff; coordinates in files are level-0 px.
        name: the slide's id in files and pictures; default: the name of its file.
        label: its true class, for the headline.
        synthetic: whether the slide was drawn by a program, which the pictures then say.

    Returns:
        The picture, RGB: slide and attention side by side, on one scale.

    Raises:
        UserError: the attention does not fit the tiles, or the store is of another slide.
        SlideError: the slide cannot be read.

    >>> import her2
    >>> store = her2.open_store("results/features/tiny/demo-004-a.zarr.zip")
    >>> found = her2.load_model("results").predict(store)
    >>> picture = her2.draw_heatmap(store, found, "slides/demo-004-a.svs", out="pictures")
    >>> picture.mode, picture.width > picture.height
    ('RGB', True)
    >>> from pathlib import Path
    >>> sorted(path.name for path in Path("pictures/slides").iterdir())
    ['demo-004-a.geojson', 'demo-004-a.png']
    """
    check_kind("store", store, FeatureStore, fix="open it with open_store(path)")
    file = slide.path if isinstance(slide, Slide) else Path(slide)
    try:
        tiles = _tiles(store, attention, name or file.stem, label)
    except (KeyError, ValueError):  # of what another program made
        raise UserError(f"{store.path}: {NOWHERE}, so that nothing can be drawn.") from None
    chosen = chosen_formats(formats)
    _check(tiles, store, file)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if out is None else Path(out)
        wanted = ("png",) if out is None else chosen
        row = draw_slide(tiles, file, Drawing(wanted, synthetic=synthetic), folder)
        if out is not None and "png" not in wanted and "reason" not in row:
            picture = draw_slide(tiles, file, Drawing(("png",), synthetic=synthetic),
                                 Path(temporary))  # fmt: skip
            folder, row = Path(temporary), picture
        if "reason" in row:
            raise SlideError(f"{file}: {row['reason']}")
        with open_image(folder / str(row["picture"])) as image:
            return image.convert("RGB")


def _tiles(
    store: FeatureStore,
    attention: FrozenPrediction | NDArray[np.floating],
    name: str,
    label: str | None,
) -> SlideTiles:
    """Return the tiles of a store with what is said of them."""
    if isinstance(attention, FrozenPrediction):
        count = len(attention.each)
        models = {"models": count}
        by = f"by the mean of {count} models" if count > 1 else "by one model"
        values, classes = attention.attention, attention.class_names
        probabilities = tuple(attention.probabilities.tolist())
    else:
        values, classes, probabilities, models = _numbers(attention), (), (), {}
        by = "weights of tiles, of which no model is known"
    return tiles_of_store(
        store.path,
        NamedSlide(name, by, label, models),
        class_names=classes,
        attention=np.asarray(values, np.float32),
        probabilities=probabilities,
        model=models,
    )


def _numbers(attention: object) -> NDArray[np.float32]:
    try:
        return np.asarray(attention, np.float32)
    except (TypeError, ValueError):
        raise UserError(
            f"attention {attention!r:.200}: give what a model predicted, or a weight for each tile."
        ) from None


def _check(tiles: SlideTiles, store: FeatureStore, file: Path) -> None:
    """Raise a UserError where slide, tiles, weights and options do not go together."""
    if not is_name(tiles.of.slide_id):
        raise UserError(
            f"name {tiles.of.slide_id!r}: files are named by it, so it has to match "
            f"{NAME_PATTERN}; give another with `name`."
        )
    values = tiles.attention
    if values.shape != (len(store),):
        raise UserError(
            f"attention {values.shape}: {store.path.name} has {len(store)} tiles; give one weight "
            "for each, in their order."
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise UserError("attention: has weights that are negative or not finite.")
    if abs(float(values.sum(dtype=np.float64)) - 1) > _SUM_TOLERANCE:
        raise UserError(
            f"attention: sums to {values.sum():g}, not to one; give attention / attention.sum()."
        )
    try:
        with reading(str(file)):
            if "given" in store.attributes:  # by another program, which knows no fingerprint
                with Slide(file) as slide:
                    same = (slide.width_px, slide.height_px) == tiles.slide.size_px
            else:
                same = fingerprint(file) == tiles.slide.fingerprint
    except SlideError as error:
        raise SlideError(f"{file}: {error}") from None
    if not same:
        raise UserError(
            f"{file}: is not the slide that {store.path.name} was made of (its content is another "
            "one). Give that slide, or embed this one."
        )
