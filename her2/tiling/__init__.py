"""Stage 1, tile: where the tissue is, and the grid of tiles on it."""
