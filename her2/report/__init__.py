"""Stage 2, report: one self-contained HTML page from the tables of all stages."""
