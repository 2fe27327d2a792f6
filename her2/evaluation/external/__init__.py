"""Stage 2, external cohorts: figures of frozen models on patients that they never saw."""
