"""A map that does not fit its slide is an error that names it, before any file is made."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from her2.core.errors import UserError
from tests.unit.heatmap_makers import FORMATS, TILES, make_world
from tests.unit.products import reseal

NAN = np.zeros((TILES, 2), np.float32)
NAN[4, 1] = np.nan


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (NAN, "is not finite"),
        (np.full((TILES, 2), np.inf, np.float32), "is not finite"),
        (np.zeros((TILES - 1, 2), np.float32), "not .tiles, outputs."),
        (np.zeros((TILES, 1), np.float32), "not .tiles, outputs."),
    ],
)
def test_a_map_that_cannot_be_the_slide_s_stops_the_job_and_names_it(
    tmp_path: Path, drawn_slide: Path, values: np.ndarray, what: str
) -> None:
    world = make_world(tmp_path, drawn_slide)
    world.train(maps=("contribution",))
    for name in world.entries.keys() - {"u0-a"}:
        path = world.model(name) / "maps.safetensors"
        stored = safetensors.numpy.load_file(path)
        path.chmod(0o644)
        safetensors.numpy.save_file(stored | {f"contribution/{name}": values}, path)
        reseal(path.parent)
    with pytest.raises(UserError, match=f"[np][0-2]-[ab]: its map contribution .* {what}"):
        world.draw(formats=FORMATS)
    assert not list(world.folder.rglob("*.geojson"))
