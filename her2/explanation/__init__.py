"""Stage 2, explanation: what the attention of a model looked at, and how far to believe it."""
