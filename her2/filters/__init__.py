"""Stage 1, tile: artefact filters, one module each.

A filter is a module of this package that defines `FILTER`. The config, tiling, the tables and the
report take what they need of it from there, so a module added here is all that a filter costs.
The modules are imported whenever a config is parsed: they import cv2 inside functions.
"""
