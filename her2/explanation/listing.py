"""Stage 2, heatmaps: the list of pictures that the report reads, `heatmaps.json`."""

from pathlib import Path

from her2.core.reading import read_json
from her2.core.stamps import noted

ATTENTION, CONTRIBUTION, THUMBNAIL, TRUTH = "attention", "contribution", "thumbnail", "truth"
"""Names of the panels of a picture."""


def read_heatmaps(path: Path) -> list[dict[str, object]]:
    """Read `heatmaps.json`: one row per drawn slide.

    A row holds `slide_id`, `patient_id`, `label`, `predicted`, `fold`, `picture`, `panels` (names),
    `tiles` (their number), `um_per_px` (of the thumbnail), `files`, `tile_strip` (None without a
    strip) and an optional `note`. Paths are relative to the list's folder. The row of a slide that
    could not be read holds only `slide_id` and the `reason`.

    An external slide has `models` (their number) in place of `fold`, and its `label` is None where
    its class is not known.
    """
    found: list[dict[str, object]] = read_json(noted(path))
    return found
