"""Feature files of other programs: any damaged one is read, or refused by name."""

import pytest

from her2.core.errors import SlideError, UserError
from her2.exchange.checks import check_given, finite_blocks
from her2.exchange.given import read_given
from tests.fuzz.faults import campaign, damaged, read_or_refused
from tests.unit.exchange_makers import SIZE, TILES, VECTORS, features_of

MADE = {name: (suffix, write, 40) for name, (suffix, write) in TILES.items()} | {
    f"vector {name}": (suffix, write, 1) for name, (suffix, write) in VECTORS.items()
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    return {
        name: (suffix, write(folder / f"A{suffix}", features_of(rows, 16)).read_bytes())
        for name, (suffix, write, rows) in MADE.items()
    }


def read_all(path):
    try:
        given = read_given(path)
        check_given(given, names=frozenset({path.stem}), size_px=SIZE, mpp=0.5)
        for _ in finite_blocks(given):
            pass
    except SlideError as error:
        raise UserError(str(error)) from error


@pytest.mark.parametrize("seeds", campaign(90, 4500))
def test_any_damaged_feature_file_is_read_or_refused_by_name(tmp_path, good, seeds):
    outcomes = set()
    for seed in seeds:
        name = list(good)[seed % len(good)]
        suffix, content = good[name]
        path = tmp_path / f"damaged{suffix}"
        path.unlink(missing_ok=True)
        path.write_bytes(damaged(content, seed))
        outcomes.add(read_or_refused(read_all, path, f"seed {seed} ({name})"))
    assert outcomes == {True, False}
