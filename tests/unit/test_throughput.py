from types import SimpleNamespace
from typing import Any

import pytest

from her2.report.sections.throughput import ThroughputRow, throughput, throughput_table


def receipt(**changes: Any) -> dict[str, Any]:
    """Return the receipt of a slide that took two cores ten seconds, nine for encoding."""
    return {
        "device": "CPU (x86_64)", "on_cpu": True, "precision": "bfloat16", "threads": 2,
        "workers": 2, "batch_size": 8, "compiled": False, "reader": "jpeg", "cold": False,
        "seconds_reading": 1.5, "seconds_waiting": 0.0, "seconds_encoding": 18.0,
        "seconds_writing": 0.5, "tiles": 400, **changes,
    }  # fmt: skip


def cuda(**changes: Any) -> dict[str, Any]:
    """Return the receipt of a slide that took a GPU ten seconds, and eight readers twenty each."""
    return receipt(
        **{
            "device": "a GPU", "on_cpu": False, "threads": 8, "workers": 1, "batch_size": 64,
            "seconds_reading": 160.0, "seconds_waiting": 1.0, "seconds_encoding": 9.0,
            "tiles": 10_000, **changes,
        }
    )  # fmt: skip


def rows(*receipts: dict[str, Any]) -> list[ThroughputRow]:
    # Twice the tiles that the receipts tell of.
    tiles = 2 * sum(found["tiles"] for found in receipts)
    views = ("key",) * (receipts[0].get("views", 1) - 1)
    features = {"uni": {"s": SimpleNamespace(tiles=tiles, views=views)}}
    return throughput(SimpleNamespace(receipts={"uni": receipts}, features=features))


def test_the_pace_of_a_cpu_is_that_of_all_its_cores() -> None:
    (row,) = rows(receipt(), receipt())
    assert row.patches_per_second == pytest.approx(800 / 20)
    assert row.hours == pytest.approx(2 * 20 / 3600)  # all tiles, twice those of the receipts
    assert (row.slides, row.patches, row.threads) == (2, 800, "2")
    assert (row.encoding, row.reading, row.writing) == pytest.approx((0.9, 0.075, 0.025))
    assert row.share_text == "encoding 90%, reading 8%, writing 2%"


def test_patches_of_augmented_views_count_like_those_of_plain_features() -> None:
    (plain,), (row,) = rows(receipt()), rows(receipt(views=3))
    assert (row.patches, row.hours) == (3 * 400, plain.hours)
    assert row.patches_per_second == pytest.approx(3 * plain.patches_per_second)


@pytest.mark.parametrize(
    "slow", [receipt(seconds_reading=20.0), cuda(seconds_waiting=9.0)], ids=["cpu", "gpu"]
)
def test_where_reading_limits_the_changes_of_views_are_named(slow: dict[str, Any]) -> None:
    (plain,), (row,) = rows(slow), rows({**slow, "views": 3})
    assert plain.bottleneck == row.bottleneck == "reading"
    assert "augment" not in plain.advice
    assert "lower `augmentations`" in row.advice


def test_views_that_were_embedded_later_count_in_the_hours_of_all_slides() -> None:
    """The receipts are of plain stores, and say nothing of them."""
    features = {"uni": {"s": SimpleNamespace(tiles=400, views=("a", "b"))}}
    (row,) = throughput(SimpleNamespace(receipts={"uni": [receipt()]}, features=features))
    assert row.hours == pytest.approx(3 * 10 / 3600)


def test_reading_beside_a_gpu_is_not_counted_against_it() -> None:
    (row,) = rows(cuda())
    assert row.patches_per_second == pytest.approx(10_000 / 10)
    assert (row.encoding, row.waiting, row.reading) == pytest.approx((0.9, 0.1, 0))


def test_what_ran_on_two_devices_or_in_two_precisions_is_two_rows() -> None:
    found = rows(receipt(), cuda(), receipt(precision="float32"))
    assert [(row.device, row.precision) for row in found] == [
        ("CPU (x86_64)", "bfloat16"),
        ("CPU (x86_64)", "float32"),
        ("a GPU", "bfloat16"),
    ]


@pytest.mark.parametrize(
    ("found", "bottleneck", "advice"),
    [
        (receipt(), "encoder", "A GPU, or more cores"),
        (receipt(precision="float32"), "encoder", "CPU with bfloat16"),
        (receipt(seconds_reading=30.0, cold=True), "storage", "copy them to a faster disk"),
        (receipt(seconds_reading=30.0, reader="openslide"), "reading", "converted to JPEG TIFF"),
        (receipt(seconds_reading=30.0), "reading", "um/px that the slides' pyramid has"),
        (receipt(seconds_writing=30.0), "writing", "Put `cache` on a faster one"),
        (cuda(), "encoder", "compile: always"),
        (cuda(compiled=True), "encoder", "more devices"),
        (cuda(precision="float32"), "encoder", "precision: auto"),
        (cuda(seconds_waiting=9.0), "reading", "more threads."),
        (cuda(seconds_waiting=9.0, cold=True), "reading", "came from storage"),
    ],
)
def test_the_bottleneck_comes_with_what_to_change(
    found: dict[str, Any], bottleneck: str, advice: str
) -> None:
    (row,) = rows(found)
    assert row.bottleneck == bottleneck
    assert advice in row.advice


def test_threads_that_differ_are_a_range() -> None:
    (row,) = rows(receipt(threads=8, workers=8), receipt(threads=2), receipt(threads=4, workers=4))
    assert row.threads == "2-8"


def test_without_receipts_there_is_no_section() -> None:
    assert throughput_table(SimpleNamespace(receipts={"uni": ()}, features={"uni": {}})) is None
