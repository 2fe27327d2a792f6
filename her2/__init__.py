"""HER2 scores from H&E whole-slide images: feature cache, attention-MIL, honest evaluation."""

__version__ = "0.1.0"
