"""Facts and grids of slides that never were."""

from typing import Any

from her2.storage.facts import SlideFacts, TileGrid


def slide_facts(**changed: Any) -> SlideFacts:
    """The facts of a slide of 100 x 100 px at 0.5 um/px."""
    values: dict[str, Any] = {
        "fingerprint": "f", "vendor": "aperio", "width_px": 100, "height_px": 100, "mpp_x": 0.5,
        "mpp_y": 0.5, "mpp_source": "metadata", "tissue_mm2": 1.0,
    }  # fmt: skip
    return SlideFacts(**(values | changed))


def tile_grid(side_px: int, level0_px: float | None = None, *, mpp: float = 0.5) -> TileGrid:
    """Square tiles, as large on the slide as for the encoder unless told otherwise."""
    side = float(side_px) if level0_px is None else level0_px
    return TileGrid(
        target_mpp=mpp, tile_px=side_px, level0_width=side, level0_height=side, read_level=0
    )
