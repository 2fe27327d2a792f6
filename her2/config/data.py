"""Config: slides, labels, tiles and labelled patches."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, create_model, model_validator

from her2.core.section import ClassName, Count, Mpp, Name, Ordered, Positive, Section, Share
from her2.filters.registry import LISTED


class CohortSection(Section):
    """Which slides, and where."""

    slides: Path = Field(description="the manifest: .csv or .parquet, one row a slide")
    root: Path | None = Field(
        None, description="where relative slide paths start; default: the manifest's folder"
    )
    masks: Path | None = Field(
        None,
        description="folder of ground truths, {slide_id}.png or .tif (white = positive; covers "
        "the whole slide, at any size), .geojson (QuPath) or .xml (ImageScope): drawn beside the "
        "attention and measured against it; never used for training",
    )
    mask_classes: tuple[str, ...] = Field(
        (),
        description="classes of the regions in `masks` that are positive; default: all regions",
    )
    tissue_masks: Path | None = Field(
        None,
        description="folder of {slide_id}.png, .tif or .tiff: tissue from another program (not "
        "zero = tissue; covers the whole slide, at any size) in place of our own detection. One "
        "for every slide; or, for some, the manifest's column `mask`",
    )
    synthetic: bool = Field(
        False, description="draw the demo slides of the manifest; every figure says synthetic"
    )
    slides_per_bucket: Count = Field(64, description="slides of one job (about)")
    max_excluded: Share = Field(
        0.2, description="the run stops when a larger share of the slides cannot be used"
    )


class Task(Section):
    """A label column mapped to ordered classes."""

    label: Name = Field(description="column of the manifest")
    classes: Annotated[dict[ClassName, list[str]], *Ordered] = Field(
        min_length=2, description="class name -> values of the label column, in order"
    )
    ordinal: bool = Field(False, description="the classes are ordered (kappa is then meaningful)")

    @model_validator(mode="after")
    def _each_value_has_one_class(self) -> "Task":
        seen: dict[str, str] = {}
        for name, values in self.classes.items():
            if not values:
                raise ValueError(f"class {name!r} lists no label value")
            for value in values:
                if value in seen:
                    raise ValueError(f"label value {value!r} is in {seen[value]!r} and {name!r}")
                seen[value] = name
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the config's order."""
        return tuple(self.classes)

    def class_index(self, value: str) -> int | None:
        """The class (0-based) of a label value, None for a value the task does not name."""
        for index, values in enumerate(self.classes.values()):
            if value in values:
                return index
        return None


_AnySection = TypeVar("_AnySection", bound=Section)


def _with_filter_options(section: type[_AnySection]) -> type[_AnySection]:
    """Add the keys of every artefact filter (`her2.filters`) to a section."""
    fields: dict[str, Any] = {
        key: (
            Annotated[float, Field(ge=option.at_least, le=option.at_most)],
            Field(option.default, description=option.description),
        )
        for one in LISTED
        for key, option in one.keys.items()
    }
    return create_model(
        section.__name__,
        __base__=section,
        __doc__=section.__doc__,
        __module__=section.__module__,
        **fields,
    )


@_with_filter_options
class TilingSection(Section):
    """What becomes a tile."""

    min_tissue: Share = Field(0.5, description="smallest share of tissue in a tile")
    overlap: Annotated[float, Field(ge=0, lt=0.9)] = Field(
        0.0, description="share of a tile's side that its neighbour repeats"
    )
    min_tiles: Count = Field(4, description="a slide with fewer tiles is excluded")
    max_tiles: Count | None = Field(
        None,
        description="at most this many tiles of a slide, drawn at random by `seed` and the slide's "
        "content; default: all",
    )
    max_enlargement: Annotated[float, Field(ge=1)] = Field(
        1.1, description="a slide coarser than the target um/px by more than this is excluded"
    )
    thumbnail_mpp: Mpp = Field(8.0, description="um/px of the image the tissue mask is made on")
    min_tissue_um: Positive = Field(
        100.0, description="tissue pieces and holes narrower than this (um) are ignored"
    )
    annotation_classes: tuple[str, ...] = Field(
        (),
        description="of the regions in the manifest's `annotation` only these classes (QuPath) or "
        "layers (ImageScope); default: all",
    )
    annotation_origin: Literal["level0", "bounds"] = Field(
        "level0",
        description="what annotations count from: the slide's corner, or the corner of its scanned "
        "part (as QuPath does for MIRAX and Leica SCN, unless opened with --no-crop)",
    )


PatchFormat = Literal["folders", "csv", "bci", "pcam", "ihc4bc"]


class PatchesSection(Section):
    """A labelled patch data set, for `source: pretrain`."""

    format: PatchFormat = Field(
        description="folders: a folder of class folders; csv: path,label[,case_id]; bci, pcam, "
        "ihc4bc: those sets as published"
    )
    path: Path = Field(description="the folder, or the .csv; relative paths in it start there")
    classes: Annotated[dict[ClassName, list[str]], *Ordered] | None = Field(
        None,
        min_length=2,
        description="class name -> labels of the set, in order; labels not named are left out. "
        "Default: every label is a class",
    )
    labels: Path | None = Field(
        None, description="ihc4bc: a csv `path,label`, for images that lie in no class folders"
    )
    slides: Path | None = Field(
        None,
        description="a csv with a column `path`: the slides the patches were cut from, where you "
        "have them; the overlap audit then also compares contents",
    )
    mpp: Mpp | None = Field(
        None,
        description="um/px of the patches: the encoder then sees windows at its own um/px; "
        "without it a whole patch is scaled to the encoder's size",
    )

    @model_validator(mode="after")
    def _labels_and_classes(self) -> "PatchesSection":
        if self.labels is not None and self.format != "ihc4bc":
            raise ValueError("`labels` belongs to `format: ihc4bc`, and only there")
        seen: dict[str, str] = {}
        for name, labels in (self.classes or {}).items():
            if not labels:
                raise ValueError(f"class {name!r} lists no label")
            for label in labels:
                if label in seen:
                    raise ValueError(f"label {label!r} is in {seen[label]!r} and {name!r}")
                seen[label] = name
        return self
