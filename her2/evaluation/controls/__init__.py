"""Stage 2, control: what else than the tissue could have given the figures."""
