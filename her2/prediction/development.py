"""Raw slides to scores: where a slide lies among those that the model was developed on."""

from her2.cohort.manifest import SlideRow
from her2.frozen.cautions import Described, cautions, percentiles
from her2.frozen.development import Development
from her2.frozen.distance import mean_embedding
from her2.prediction.predictor import Judge, Judgement
from her2.storage.entries import TileEntry
from her2.storage.features import FeatureStore


def judge_of(development: Development) -> Judge:
    """Return what compares slides with the development of a model."""
    reference = development.embeddings

    def judge(row: SlideRow, tiled: TileEntry, store: FeatureStore) -> Judgement:
        assert tiled.facts is not None  # it has features
        distance = None
        if reference is not None:
            distance = float(reference.distance(mean_embedding(store)[None])[0])
        slide = Described.of(tiled.facts, tiled.tiles, scanner=row.scanner, distance=distance)
        return Judgement(
            tuple(caution.sentence for caution in cautions(slide, development)),
            percentiles(slide, development),
        )

    return judge
