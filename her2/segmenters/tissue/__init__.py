"""Tissue segmenters, the choices of `tiling.segmenter`; a file defines `SEGMENTER`."""
