"""Raw slides to scores: where a slide lies among those that a bundle's model was developed on."""

from collections.abc import Iterator

from her2.cohort.cautions import sentences
from her2.cohort.manifest import SlideRow
from her2.config.jobs import VERSIONS
from her2.frozen.bundle.schema import Contents, Tiling
from her2.frozen.cautions import Described, cautions, percentiles
from her2.frozen.distance import mean_embedding
from her2.prediction.predictor import Judge, Judgement
from her2.storage.entries import TileEntry
from her2.storage.facts import SlideFacts
from her2.storage.features import FeatureStore

SYNTHETIC = "The model was developed on slides drawn by a program and says nothing about tissue."
OTHER_STAGES = (
    "This version of her2 finds or embeds tiles in another way than the one that the model was "
    "developed with."
)


def judge_of(contents: Contents) -> Judge:
    """Return what compares slides with the development of a bundle's model."""
    development = contents.development
    reference, always = development.embeddings, tuple(_of_all_slides(contents))

    def judge(row: SlideRow, tiled: TileEntry, store: FeatureStore) -> Judgement:
        assert tiled.facts is not None  # it has features
        distance = None
        if reference is not None:
            distance = float(reference.distance(mean_embedding(store)[None])[0])
        slide = Described.of(tiled.facts, tiled.tiles, scanner=row.scanner, distance=distance)
        found = [caution.sentence for caution in cautions(slide, development)]
        found += tissue_cautions(contents.tiling, tiled.facts)
        found += sentences(tiled.facts)
        return Judgement((*found, *always), percentiles(slide, development))

    return judge


def tissue_cautions(tiling: Tiling, facts: SlideFacts) -> Iterator[str]:
    """Yield in what the choice of a slide's tissue differs from that of all development slides."""
    sources = [source for source, slides in tiling.tissue.items() if slides]
    if sources and facts.tissue_source not in sources:
        yield (
            f"Its tissue comes from another source ({facts.tissue_source}) than that of all "
            f"development slides ({', '.join(sources)})."
        )
    total = sum(tiling.tissue.values())
    if facts.regions is None and 0 < tiling.annotated == total:
        yield "Its tiles are from all of its tissue, in development they were from drawn regions."
    if facts.regions is not None and tiling.annotated == 0 < total:
        yield "Its tiles are from drawn regions, in development they were from all of the tissue."


def _of_all_slides(contents: Contents) -> Iterator[str]:
    stages = contents.software.stages
    if any(stages.get(name) != VERSIONS[name] for name in ("tile", "embed")):
        yield OTHER_STAGES
    if contents.synthetic:
        yield SYNTHETIC
