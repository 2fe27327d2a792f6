"""Stage 2, evaluate: AUC over random bags, as computed in arXiv 2411.05028."""

from pathlib import Path

import numpy as np
import polars as pl

from her2.config.jobs import EvaluateSpec
from her2.core.tables import null, read_result
from her2.evaluation.figures import FIGURES
from her2.metrics.auc import auc
from her2.metrics.base import Binary
from her2.storage.cache import Cache
from her2.storage.entries import read_folds
from her2.storage.fold_files import check_fold


def bag_figures(
    spec: EvaluateSpec, cache: Cache, models: Path, predictions: pl.DataFrame
) -> pl.DataFrame:
    """Return figures at level `bag`, without intervals as bags of a slide are not independent."""
    classes = spec.task.class_names
    target = dict(predictions.select("slide_id", "target").unique().iter_rows())
    parts = []
    for entry in read_folds(models, spec.chunks).values():
        folder = cache.path("models", entry.key)
        if (folder / "bags.parquet").exists():
            check_fold(folder, ["bags.parquet"], entry.key)
            parts.append(read_result(folder / "bags.parquet"))
    bags = pl.concat(parts)
    truth = np.array([target[slide] for slide in bags["slide_id"]], int)
    ones = np.ones((1, len(bags)))
    values = {
        name: float(auc(Binary(truth == i, bags[f"prob_{name}"].to_numpy(), ones))[0])
        for i, name in enumerate(classes)
    }
    values["macro"] = float(np.mean(list(values.values())))
    counts = {name: int((truth == i).sum()) for i, name in enumerate(classes)}
    return pl.DataFrame(
        [
            {
                "level": "bag",
                "metric": "auc",
                "class": name,
                "value": null(value),
                "n": len(bags),
                "n_positive": counts.get(name),
                "prevalence": counts[name] / len(bags) if name in counts else None,
                "note": "random bags, pooled over folds; no interval, because bags of one slide "
                "are not independent",
            }
            for name, value in values.items()
        ],
        schema=FIGURES,
    )
