"""From slide files to a table: raw slides through a bundle of trained models."""
