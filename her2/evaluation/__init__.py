"""Stage 2, evaluate: figures from the predictions table alone."""
