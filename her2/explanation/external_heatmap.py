"""Stage 2, heatmaps of external slides: the frozen model's attention, drawn like any other."""

from pathlib import Path

from her2.cohort.manifest import Cohort
from her2.config.external_jobs import ExternalHeatmapSpec
from her2.explanation.external_slides import find_external
from her2.explanation.heatmap_stage import draw_source
from her2.storage.cache import Cache


def draw_external(
    spec: ExternalHeatmapSpec,
    cohort: Cohort,
    cache: Cache,
    *,
    predictions: Path,
    table: Path,
    features: Path,
    masks: Path | None = None,
    output: Path,
) -> list[dict[str, object]]:
    """Draw chosen external slides and each score's tiles, and write `tiles.json`, `heatmaps.json`.

    Args:
        spec: the job.
        cohort: gives the slides' files.
        cache: holds features.
        predictions: the folder that `her2 apply` wrote.
        table: the cohort's table of slides, with their labels.
        features: the encoder's folder of feature entries of the cohort.
        masks: folder of ground truths to draw as a panel (docs/explanation.md), if any.
        output: `heatmaps.json`; the other files go beside it, in `slides`, `strips` and `scores`.

    Raises:
        UserError: predictions and features do not go together, or a product is missing.
    """
    external = find_external(spec, cache, predictions=predictions, table=table, features=features)
    return draw_source(spec, external.source(), cohort, masks, output)
