"""Which slides there are, who they belong to, and how patients are split into folds."""
