"""Slides of two patients that show the same tissue are found by their features."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from her2.cohort.similar import (
    PROBES,
    Tissue,
    find_similar,
    find_similar_across,
    shared_tiles,
    similar_pairs,
)
from her2.config.external_jobs import ApartSpec
from her2.config.jobs import SimilarSpec
from her2.core.errors import UserError
from her2.core.files import digest
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, write_entries
from her2.storage.features import FeatureStore
from tests.unit.products import write_store

D, SIDE = 12, 12
SPEC = SimilarSpec(buckets=("b",), max_shared_tiles=0.5)


def grid(side: int = SIDE) -> np.ndarray:
    """Return the positions of a square of tiles, row by row, in tile sides."""
    return np.stack(np.divmod(np.arange(side**2), side), axis=1).astype(np.float32)


def tissue(name: str, seed: int, *, kinds: int = 6, noise: float = 0.3, side: int = SIDE) -> Tissue:
    """Return tiles of a few kinds that all slides share, each with individual features."""
    kind = np.random.default_rng(99).normal(size=(kinds, D))
    generator = np.random.default_rng(seed)
    features = kind[generator.integers(kinds, size=side**2)]
    features = features + noise * generator.normal(size=features.shape)
    return Tissue(name, f"p-{name}", store(features), grid(side))


def store(features: np.ndarray) -> FeatureStore:
    return FeatureStore(Path("x"), (features.astype(np.float16),), {})


def copied(of: Tissue, name: str, *, change: float = 0.0, drop: slice = slice(None)) -> Tissue:
    """Return the same tiles with features as after another compression, or fewer tiles."""
    features = of.store.features.astype(np.float32)
    other = features + change * np.random.default_rng(5).normal(size=features.shape)
    return Tissue(name, f"p-{name}", store(other[drop]), of.places[drop])


def scale(slides: list[Tissue]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate([s.store.features.astype(np.float32) for s in slides])
    return rows.mean(axis=0), rows.std(axis=0)


def shared(a: Tissue, b: Tissue) -> float | None:
    return shared_tiles(a, b, *scale([tissue(str(i), i) for i in range(6)]))


def test_a_slide_and_itself_share_all_tiles() -> None:
    slide = tissue("a", 0)
    assert shared(slide, copied(slide, "b")) == 1


@pytest.mark.parametrize("seed", range(5))
def test_slides_of_the_same_kinds_of_tissue_share_what_chance_gives(seed: int) -> None:
    assert shared(tissue("a", seed), tissue("b", 100 + seed)) < 0.25


def test_a_copy_of_another_compression_is_found() -> None:
    slide = tissue("a", 0)
    assert shared(slide, copied(slide, "b", change=0.1)) > 0.8
    assert shared(copied(slide, "b", change=0.1), slide) > 0.8


def test_a_piece_of_a_slide_is_found() -> None:
    slide = tissue("a", 0)
    assert shared(slide, copied(slide, "b", change=0.05, drop=slice(40, 90))) > 0.8


def test_a_copy_whose_coordinates_are_shifted_is_found() -> None:
    slide = tissue("a", 0)
    moved = Tissue("b", "p-b", slide.store, slide.places + np.float32([20.5, -3]))
    assert shared(slide, moved) == 1


def test_slides_too_small_to_tell_are_not_judged() -> None:
    small = tissue("a", 0, side=5)
    assert shared(small, copied(small, "b")) is None


def test_a_copy_is_the_first_of_the_pairs_and_slides_of_one_patient_are_none() -> None:
    slides = [tissue(str(i), i) for i in range(8)]
    twin = copied(slides[3], "twin", change=0.05)
    sister = Tissue("sister", slides[5].patient_id, slides[5].store, slides[5].places)
    pairs = similar_pairs([*slides, twin, sister])
    assert (pairs[0].slide_a, pairs[0].slide_b) == ("3", "twin")
    assert pairs[0].shared > 0.8
    assert all(pair.shared < 0.5 for pair in pairs[1:])
    assert all(pair.patient_a != pair.patient_b for pair in pairs)
    assert similar_pairs(slides[:1]) == []


def test_every_probe_is_another_tile() -> None:
    large = tissue("a", 0, side=20)
    assert shared(large, copied(large, "b")) == 1
    assert len(large.store) > PROBES


def fill(folder: Path, slides: list[Tissue], encoder: str = "e") -> Cache:
    """Write a cohort's table and features, and return the cache beside it."""
    cache, entries = Cache(folder.parent / "cache"), {}
    for slide in slides:
        key = digest([slide.slide_id, encoder])
        with cache.publish("features", key) as path:
            write_store(
                path,
                slide.store.features,
                (slide.places * 224).astype(np.int32),
                {
                    "key": key,
                    "slide": {"level0_tile": [224.0, 224.0]},
                    "encoder": {"digest": encoder},
                },
            )
        entries[slide.slide_id] = FeatureEntry("ok", None, key, len(slide.store), 0, D)
    entries["lost"] = FeatureEntry("excluded", "no tissue")
    write_entries(folder / "tiny" / "b.json", entries)
    pl.DataFrame(
        [(s.slide_id, s.patient_id) for s in slides] + [("lost", "p")],
        schema=["slide_id", "patient_id"],
        orient="row",
    ).write_parquet(folder / "audited.parquet")
    return cache


def run(folder: Path, slides: list[Tissue], spec: SimilarSpec = SPEC) -> pl.DataFrame:
    cache = fill(folder / "cohort", slides)
    output = folder / "similar.parquet"
    audited, features = folder / "cohort" / "audited.parquet", folder / "cohort" / "tiny"
    find_similar(spec, audited, cache, features=features, output=output)
    return pl.read_parquet(output)


def across(
    folder: Path,
    external: list[Tissue],
    development: list[Tissue],
    *,
    limit: float = 0.5,
    encoders: tuple[str, str] = ("e", "e"),
) -> pl.DataFrame:
    spec = ApartSpec(
        cohort="yale", buckets=("b",), development_buckets=("b",), max_shared_tiles=limit
    )
    fill(folder / "yale", external, encoders[0])
    cache = fill(folder / "development", development, encoders[1])
    find_similar_across(
        spec,
        folder / "yale" / "audited.parquet",
        folder / "development" / "audited.parquet",
        cache,
        features=folder / "yale" / "tiny",
        development_features=folder / "development" / "tiny",
        output=folder / "across.parquet",
    )
    return pl.read_parquet(folder / "across.parquet")


def test_an_overlap_stops_the_run_naming_slides_patients_and_values(tmp_path: Path) -> None:
    slides = [tissue(str(i), i) for i in range(5)]
    with pytest.raises(UserError) as caught:
        run(tmp_path, [*slides, copied(slides[2], "twin", change=0.05)])
    text = str(caught.value)
    assert "tiny: slides of different patients show the same tissue" in text
    assert "2 (p-2) and twin (p-twin): " in text
    assert text.count("  - ") == 1
    assert "folds.max_shared_tiles 0.5" in text
    assert not (tmp_path / "similar.parquet").exists()


def test_an_overlap_that_the_config_allows_is_in_the_table(tmp_path: Path) -> None:
    slides = [tissue(str(i), i) for i in range(5)]
    allowed = SPEC.model_copy(update={"max_shared_tiles": 1.0})
    table = run(tmp_path, [*slides, copied(slides[2], "twin", change=0.05)], allowed)
    assert table.row(0)[:4] == ("2", "twin", "p-2", "p-twin")
    assert table["shared"][0] > 0.8


def test_a_clean_cohort_has_a_table_of_its_most_similar_pairs(tmp_path: Path) -> None:
    table = run(tmp_path, [tissue(str(i), i) for i in range(6)])
    assert 0 < len(table) <= 20
    assert table["shared"].max() < 0.5
    assert table["shared"].to_list() == sorted(table["shared"], reverse=True)


def test_a_copy_in_the_other_cohort_stops_the_run_naming_both_slides(tmp_path: Path) -> None:
    development = [tissue(f"d{i}", i) for i in range(5)]
    external = [tissue(f"e{i}", 50 + i) for i in range(3)]
    with pytest.raises(UserError) as caught:
        across(tmp_path, [*external, copied(development[2], "twin", change=0.05)], development)
    text = str(caught.value)
    assert text.startswith(
        "tiny: slides of validation.yale show the same tissue as slides of the d"
    )
    assert "twin (p-twin) and d2 (p-d2): " in text
    assert text.count("  - ") == 1
    assert "folds.max_shared_tiles 0.5" in text
    assert not (tmp_path / "across.parquet").exists()


def test_a_copy_counts_whatever_its_patient_is_called(tmp_path: Path) -> None:
    """Ids of two hospitals may agree by chance, and such slides must not be passed over."""
    development = [tissue(f"d{i}", i) for i in range(5)]
    twin = copied(development[2], "twin", change=0.05)
    same = Tissue("twin", development[2].patient_id, twin.store, twin.places)
    with pytest.raises(UserError, match=r"twin \(p-d2\) and d2 \(p-d2\)"):
        across(tmp_path, [same], development)


def test_only_pairs_of_an_external_and_a_development_slide_are_compared(tmp_path: Path) -> None:
    """Copies inside of a cohort are found by the search of that cohort."""
    development = [tissue(f"d{i}", i) for i in range(5)]
    external = [tissue(f"e{i}", 50 + i) for i in range(3)]
    table = across(
        tmp_path, [*external, copied(external[0], "f")], [*development, copied(development[0], "g")]
    )
    assert set(table["slide_a"]) == {"e0", "e1", "e2", "f"}
    assert set(table["slide_b"]) <= {*(f"d{i}" for i in range(5)), "g"}
    assert len(table) == 20
    assert table.columns == [
        "slide_a", "slide_b", "patient_a", "patient_b", "cosine", "shared"
    ]  # fmt: skip
    assert table["shared"].max() < 0.5


def test_a_copy_in_the_other_cohort_that_the_config_allows_is_in_the_table(tmp_path: Path) -> None:
    development = [tissue(f"d{i}", i) for i in range(5)]
    table = across(tmp_path, [copied(development[2], "twin", change=0.05)], development, limit=1.0)
    assert table.row(0)[:4] == ("twin", "d2", "p-twin", "p-d2")
    assert table["shared"][0] > 0.8


@pytest.mark.parametrize("empty", ["external", "development"])
def test_a_cohort_without_usable_slides_has_no_pairs(tmp_path: Path, empty: str) -> None:
    slides = {
        name: [] if name == empty else [tissue(f"{name}{i}", i) for i in range(3)]
        for name in ("external", "development")
    }
    assert len(across(tmp_path, slides["external"], slides["development"])) == 0


def test_features_of_two_encoders_are_not_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not of one encoder, e.g. those of d and e; run snakemake"):
        across(tmp_path, [tissue("e", 0)], [tissue("d", 1)], encoders=("new", "old"))
