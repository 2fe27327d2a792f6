"""Stage 2, report: build one self-contained HTML page from the tables of all stages."""
