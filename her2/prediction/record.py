"""Raw slides to scores: the record of what made a table."""

from collections.abc import Sequence
from typing import Any

import polars as pl

import her2
from her2.core.files import file_digest
from her2.prediction.options import SLIDE, Options
from her2.prediction.predictor import Predictor


def record_of(
    predictor: Predictor,
    options: Options,
    table: pl.DataFrame,
    precisions: Sequence[str],
    pictures: Sequence[dict[str, object]],
) -> dict[str, Any]:
    """Return what made the table."""
    slides = table.filter(level=SLIDE)
    return {
        "her2": her2.__version__,
        "table": {
            "name": options.output.name,
            "form": options.form,
            "sha256": file_digest(options.output),
        },
        "model": {
            "name": predictor.model.name,
            "models": len(predictor.model.folds),
            "encoder": predictor.model.first.card["encoder_digest"],
            **predictor.made_of,
        },
        "tiles": {"mpp": predictor.mpp, "px": predictor.size},
        "precisions": {"here": precisions, "development": predictor.ran_in},
        "thresholds": [
            {
                "level": one.level,
                "grouping": one.grouping,
                f"{one.fixed} in development": one.asked,
                "threshold": one.value,
            }
            for one in predictor.model.thresholds
        ],
        "slides": {
            status: slides.filter(status=status).height for status in ("ok", "excluded", "failed")
        },
        "with_cautions": slides["cautions"].count(),
        **({"pictures": list(pictures)} if pictures else {}),
    }
