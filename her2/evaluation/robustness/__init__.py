"""Stage 2, robustness: what the features of an encoder know beside the label."""
