"""Stage 1, tile: artefact filters, one module each.

A filter is a module of this package that defines `FILTER`. The config, tiling, the tables and the
report take everything from there, so adding a filter means adding one module. The modules are
imported whenever a config is parsed, so they import cv2 inside functions.
"""
