"""Segmenters for tests, in the place of published ones."""

import pytest

from her2.segmenters.base import ArtefactSegmenter, Segmenter


def put(monkeypatch: pytest.MonkeyPatch, one: Segmenter) -> None:
    """Put a declaration in the place of each published one of its kind."""
    modules = ["her2.segmenters", "her2.tiling.segmenter"]
    if isinstance(one, ArtefactSegmenter):
        modules.append("her2.config.data")  # which asks for the names of its artefacts
    for module in modules:  # the functions have the names of the keys
        monkeypatch.setattr(f"{module}.{one.key}", lambda name: one)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no network to fetch weights by."""

    def fail(*_: object, **__: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
