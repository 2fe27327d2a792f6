"""Stage 2, evaluate: compute figures from the predictions table alone."""
