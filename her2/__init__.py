"""HER2 scores from H&E whole-slide images: feature cache, attention-MIL, honest evaluation.

The names below are the package's door for scripts and notebooks (docs/python.md). Each is imported
when it is first used, so that `import her2` costs nothing. They are stable: a test pins them and
their signatures. Their types are in `__init__.pyi`: imports of them here, even for type checkers
alone, would make every module that asks for the version depend on all others.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "her2.cohort.manifest": ("Cohort",),
    "her2.cohort.reading": ("read_cohort",),
    "her2.config": ("Config", "load_config"),
    "her2.core.errors": ("SlideError", "TileError", "UserError"),
    "her2.embedding.encoder": ("FrozenEncoder", "load_encoder"),
    "her2.embedding.one_slide": ("embed",),
    "her2.evaluation.given": ("Evaluation", "evaluate"),
    "her2.exchange.form": ("Given",),
    "her2.exchange.given": ("read_given",),
    "her2.explanation.one_slide": ("draw_heatmap",),
    "her2.frozen.loading": ("load_model",),
    "her2.frozen.model": ("FrozenModel", "FrozenPrediction"),
    "her2.report.finished": ("Results",),
    "her2.slides.slide": ("Slide", "open_slide"),
    "her2.storage.features": ("FeatureStore", "open_store"),
    "her2.tiling.one_slide": ("Tiles", "tile"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Cohort",
    "Config",
    "Evaluation",
    "FeatureStore",
    "FrozenEncoder",
    "FrozenModel",
    "FrozenPrediction",
    "Given",
    "Results",
    "Slide",
    "SlideError",
    "TileError",
    "Tiles",
    "UserError",
    "draw_heatmap",
    "embed",
    "evaluate",
    "load_config",
    "load_encoder",
    "load_model",
    "open_slide",
    "open_store",
    "read_cohort",
    "read_given",
    "tile",
]


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'her2' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names, whether they are imported yet or not."""
    return sorted({*globals(), *__all__})
