"""Stage 2, control: explanations of the figures other than the tissue."""
