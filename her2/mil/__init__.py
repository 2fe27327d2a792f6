"""Stage 2, train: attention-MIL on feature stores and a folds table; no slide is opened."""
