"""HER2 scores from H&E whole-slide images: feature cache, attention-MIL, honest evaluation.

The names below are the package's own door for scripts and notebooks; each is imported when it is
first used, so that `import her2` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from her2.cohort.manifest import Cohort
    from her2.cohort.reading import read_cohort
    from her2.config import Config, load_config
    from her2.core.errors import SlideError, TileError, UserError
    from her2.encoders.stage import load_encoder
    from her2.frozen.predict import predict_slides
    from her2.slides.slide import Slide
    from her2.storage.cache import Cache
    from her2.storage.features import FeatureStore, open_store
    from her2.storage.tiles import TileTable, read_table
    from her2.tiling.grid import tile_slide

__version__ = "0.1.0"

_HOMES = {
    "her2.cohort.manifest": ("Cohort",),
    "her2.cohort.reading": ("read_cohort",),
    "her2.config": ("Config", "load_config"),
    "her2.core.errors": ("SlideError", "TileError", "UserError"),
    "her2.encoders.stage": ("load_encoder",),
    "her2.frozen.predict": ("predict_slides",),
    "her2.slides.slide": ("Slide",),
    "her2.storage.cache": ("Cache",),
    "her2.storage.features": ("FeatureStore", "open_store"),
    "her2.storage.tiles": ("TileTable", "read_table"),
    "her2.tiling.grid": ("tile_slide",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Cache",
    "Cohort",
    "Config",
    "FeatureStore",
    "Slide",
    "SlideError",
    "TileError",
    "TileTable",
    "UserError",
    "load_config",
    "load_encoder",
    "open_store",
    "predict_slides",
    "read_cohort",
    "read_table",
    "tile_slide",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'her2' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names, whether they are imported yet or not."""
    return sorted({*globals(), *__all__})
