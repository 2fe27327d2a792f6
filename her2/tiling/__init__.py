"""Stage 1, tile: tissue detection, and the grid of tiles on the tissue."""
