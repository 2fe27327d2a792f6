"""Config: slides, labels, tiles and labelled patches."""

import operator
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, create_model, model_validator

from her2.core.paths import UserPath
from her2.core.section import ClassName, Count, Mpp, Name, Ordered, Positive, Section, Share
from her2.filters.registry import LISTED
from her2.segmenters import ARTEFACT_NAMES, artefact_segmenter
from her2.segmenters import NAMES as SEGMENTERS

if TYPE_CHECKING:
    SegmenterName = str
    ArtefactSegmenterName = str
else:
    SegmenterName = Literal[SEGMENTERS]
    ArtefactSegmenterName = Literal[ARTEFACT_NAMES]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]

PatientLabel = Literal["refuse", "worst", "first", "exclude"]
UnmappedLabels = Literal["error", "leave_out"]
MEANS = ("macro", "weighted", "all")
"""Names in the column `class` of tables that are of several classes."""


class CohortSection(Section):
    """The slides and their files."""

    slides: UserPath = Field(description="the manifest: .csv or .parquet, one row per slide")
    root: UserPath | None = Field(
        None, description="folder where relative paths start; default: the manifest's folder"
    )
    masks: UserPath | None = Field(
        None,
        description="folder of ground truths: {slide_id}.png or .tif (white = positive; covers "
        "the whole slide, at any size), .geojson (QuPath) or .xml (ImageScope). They are drawn "
        "beside the attention and compared with it, and never used for training",
    )
    mask_classes: tuple[str, ...] = Field(
        (),
        description="classes of regions in `masks` that are positive; default: all regions",
    )
    tissue_masks: UserPath | None = Field(
        None,
        description="folder of {slide_id}.png, .tif or .tiff: tissue masks from another program "
        "(not zero = tissue; covers the whole slide, at any size), used instead of the tissue "
        "detection. Every slide needs one; for single slides, use the manifest's column `mask`",
    )
    synthetic: bool = Field(
        False, description="generate the manifest's slides as a demo; every figure says synthetic"
    )
    slides_per_bucket: Count = Field(64, description="approximate number of slides per job")
    max_excluded: Share = Field(
        0.2, description="the run stops if a larger share of the slides cannot be used"
    )
    patient_label: PatientLabel = Field(
        "refuse",
        description="the class of a patient whose slides have labels of different classes of a "
        "task. refuse: the run stops and names them all; worst: the highest class, for tasks with "
        "`ordinal: true`; first: the class of the patient's first slide in the manifest; exclude: "
        "the patient is left out of that task",
    )
    missing: tuple[str, ...] = Field(
        (),
        exclude_if=operator.not_,
        description="further words (in any case) for a missing label, beside an empty cell, `-`, "
        "NA, n/a, NaN, None, null, unknown, missing, not available, not evaluated, not applicable "
        "and not reported, also in brackets. They count for external cohorts too",
    )
    unmapped_labels: UnmappedLabels = Field(
        "error",
        exclude_if=lambda value: value == "error",
        description="labels that are in no task's classes. error: the run stops and names them "
        "all; leave_out: their slides are predicted only, and the check, the run and the report "
        "count them. It counts for external cohorts too",
    )


class Task(Section):
    """A label column mapped to ordered classes."""

    label: Name = Field(description="column of the manifest with the labels")
    classes: Annotated[dict[ClassName, list[str]], *Ordered] = Field(
        min_length=2,
        description="class name -> values of the label column, in order of the classes",
    )
    ordinal: bool = Field(
        False, description="true: the classes are ordered (kappa is then meaningful)"
    )

    @model_validator(mode="after")
    def _no_class_is_named_as_a_mean(self) -> "Task":
        for name in self.classes:
            if name in MEANS:
                raise ValueError(
                    f"class {name!r}: the tables have a mean of this name; choose another name"
                )
        return self

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
        """Return the class names in the config's order."""
        return tuple(self.classes)

    def class_index(self, value: str) -> int | None:
        """Return the class (0-based) of a label value, or None if it is not in the task."""
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


def _is_none(value: object) -> bool:
    return value is None


@_with_filter_options
class TilingSection(Section):
    """Tissue detection, the grid of tiles, and which tiles are kept."""

    min_tissue: Share = Field(0.5, description="minimum share of tissue in a tile")
    overlap: Annotated[float, Field(ge=0, lt=0.9)] = Field(
        0.0, description="share of a tile's side that overlaps with its neighbour"
    )
    min_tiles: Count = Field(4, description="slides with fewer tiles are excluded")
    max_tiles: Count | None = Field(
        None,
        description="maximum number of tiles per slide, drawn at random from `seed` and the "
        "slide's content; default: all tiles",
    )
    max_enlargement: Annotated[float, Field(ge=1, le=1000)] = Field(
        1.1, description="slides coarser than the target um/px by a larger factor are excluded"
    )
    thumbnail_mpp: Mpp = Field(8.0, description="um/px of the image used for tissue detection")
    min_tissue_um: Positive = Field(
        100.0, description="pieces of tissue and holes narrower than this (um) are ignored"
    )
    annotation_classes: tuple[str, ...] = Field(
        (),
        description="classes (QuPath) or layers (ImageScope) of the regions to use from the "
        "manifest's column `annotation`; default: all",
    )
    annotation_origin: Literal["level0", "bounds"] = Field(
        "level0",
        description="origin of the annotations: the slide's corner, or the corner of its scanned "
        "area (QuPath's origin for MIRAX and Leica SCN, unless opened with --no-crop)",
    )
    segmenter: SegmenterName | None = Field(
        None,
        exclude_if=_is_none,  # or every slide would be tiled again
        description="a published network that finds the tissue in place of its colour, on a GPU "
        "where there is one (licences: docs/tiles.md); default: tissue is found by its colour",
    )
    segmenter_weights: UserPath | None = Field(
        None,
        exclude_if=_is_none,
        description="local file of the segmenter's weights; default: fetched from where they are "
        "published",
    )
    segmenter_sha256: Sha256 | None = Field(
        None,
        exclude_if=_is_none,
        description="SHA-256 of `segmenter_weights`; only needed to use, on purpose, another file "
        "than the published one",
    )

    artefact_segmenter: ArtefactSegmenterName | None = Field(
        None,
        exclude_if=_is_none,
        description="a published network that finds artefacts on the tiles that all filters keep, "
        "on a GPU where there is one (licences, and how far it can be trusted: docs/tiles.md); "
        "default: none",
    )
    artefact_limits: dict[str, Share] | None = Field(
        None,
        exclude_if=_is_none,
        description="artefact of that network -> maximum share of a tile; 1: no tile is rejected. "
        "Those that are not named have the default limit of docs/tiles.md",
    )
    artefact_segmenter_weights: UserPath | None = Field(
        None,
        exclude_if=_is_none,
        description="local file of the artefact segmenter's weights; default: fetched from where "
        "they are published",
    )
    artefact_segmenter_sha256: Sha256 | None = Field(
        None,
        exclude_if=_is_none,
        description="SHA-256 of `artefact_segmenter_weights`; only needed to use, on purpose, "
        "another file than the published one",
    )

    @model_validator(mode="after")
    def _weights_of_a_segmenter(self) -> "TilingSection":
        for key in ("segmenter", "artefact_segmenter"):
            for given, needed in ((f"{key}_weights", key), (f"{key}_sha256", f"{key}_weights")):
                if getattr(self, given) is not None and getattr(self, needed) is None:
                    raise ValueError(f"`{given}` needs `{needed}`")
        return self

    @model_validator(mode="after")
    def _limits_of_known_artefacts(self) -> "TilingSection":
        if self.artefact_limits is None:
            return self
        if self.artefact_segmenter is None:
            raise ValueError("`artefact_limits` needs `artefact_segmenter`")
        known = [one.short for one in artefact_segmenter(self.artefact_segmenter).artefacts]
        unknown = [name for name in self.artefact_limits if name not in known]
        if unknown:
            raise ValueError(
                f"`artefact_limits`: {self.artefact_segmenter} tells {', '.join(known)} apart, and "
                f"no {', '.join(map(repr, unknown))}"
            )
        return self

    @property
    def as_tiled(self) -> "TilingSection":
        """Return the section without where the segmenters' weights come from.

        Tiles and bundles depend on the weights themselves, which a card identifies.
        """
        keys = ("segmenter", "artefact_segmenter")
        return self.model_copy(
            update={f"{key}_{what}": None for key in keys for what in ("weights", "sha256")}
        )


PatchFormat = Literal["folders", "csv", "bci", "pcam", "ihc4bc"]


class PatchesSection(Section):
    """A labelled set of patches, for `source: pretrain`."""

    format: PatchFormat = Field(
        description="folders: one folder per class; csv: path,label[,case_id]; bci, pcam, ihc4bc: "
        "these data sets as published"
    )
    path: UserPath = Field(
        description="the folder, or the .csv; paths in it are relative to its folder"
    )
    classes: Annotated[dict[ClassName, list[str]], *Ordered] | None = Field(
        None,
        min_length=2,
        description="class name -> labels of the set, in order of the classes; other labels are "
        "left out. Default: every label is a class",
    )
    stain: Literal["HE", "IHC"] | None = Field(
        None,
        exclude_if=_is_none,  # or every pre-trained encoder would be made again
        description="bci: the stain to use, if `path` is the folder of both; default: `path` is "
        "the folder of one",
    )
    labels: UserPath | None = Field(
        None,
        description="ihc4bc: the set's own csv without a header, or a csv `path,label`, for images "
        "that are not in class folders",
    )
    stained_dab: Annotated[float, Field(gt=0, le=1_000)] | None = Field(
        None,
        exclude_if=_is_none,
        description="ihc4bc, with the set's own csv: mean DAB from which a nucleus is stained",
    )
    stained_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        exclude_if=_is_none,
        description="ihc4bc, with the set's own csv: share of stained nuclei from which a patch is "
        "positive; below, and where the annotators wrote 0, it is negative",
    )
    slides: UserPath | None = Field(
        None,
        description="a csv with a column `path` of the slides that the patches were cut from, if "
        "available; the overlap audit then also compares contents",
    )
    mpp: Mpp | None = Field(
        None,
        description="um/px of the patches: the encoder then gets crops at its own um/px; default: "
        "unknown, and whole patches are scaled to the encoder's size",
    )

    @model_validator(mode="after")
    def _labels_and_classes(self) -> "PatchesSection":
        if self.labels is not None and self.format != "ihc4bc":
            raise ValueError("`labels` is only for `format: ihc4bc`")
        if self.stain is not None and self.format != "bci":
            raise ValueError("`stain` is only for `format: bci`")
        stained = (self.stained_dab, self.stained_share)
        if stained != (None, None) and (None in stained or self.labels is None):
            raise ValueError("`stained_dab`, `stained_share` and `labels` are set together")
        seen: dict[str, str] = {}
        for name, labels in (self.classes or {}).items():
            if not labels:
                raise ValueError(f"class {name!r} lists no label")
            for label in labels:
                if label in seen:
                    raise ValueError(f"label {label!r} is in {seen[label]!r} and {name!r}")
                seen[label] = name
        return self
