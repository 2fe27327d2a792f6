"""Stage 2, heatmaps: the list of pictures that the report reads, `heatmaps.json`."""

import json
from pathlib import Path

ATTENTION, CONTRIBUTION, THUMBNAIL, TRUTH = "attention", "contribution", "thumbnail", "truth"
"""Names of the panels of a picture."""


def read_heatmaps(path: Path) -> list[dict[str, object]]:
    """Read `heatmaps.json`: one row per drawn slide.

    `slide_id`, `patient_id`, `label`, `predicted`, `fold`, `picture`, `panels` (names), `tiles`
    (how many), `um_per_px` (of the thumbnail), `files` and `tile_strip` (None where there is no
    strip), and where something is to be said a `note`. Paths start where the list lies. Of a slide
    that could not be read: `slide_id` and the `reason`.
    """
    found: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    return found
