"""The cohort: the manifest of slides and patients, its checks, and the folds."""
