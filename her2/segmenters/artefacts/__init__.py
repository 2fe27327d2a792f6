"""Artefact segmenters, the choices of `tiling.artefact_segmenter`; a file defines `SEGMENTER`."""
