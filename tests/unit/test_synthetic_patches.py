import csv
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from her2.config import PatchesSection
from her2.pretraining.patch_set import PatchSet
from her2.pretraining.patches import read_patch_set
from her2.synthetic import demo_manifest
from her2.synthetic.ihc import SCORES, draw_ihc
from her2.synthetic.patches import LABELS, draw_patch_set

KINDS = tuple(LABELS)
N = 12


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("drawn")
    return {k: draw_patch_set(k, root / k, n_per_class=N, size_px=64, seed=3) for k in KINDS}


def read(path: Path, kind: str = "csv") -> PatchSet:
    section = PatchesSection(format=kind, path=path)
    return read_patch_set("drawn", section, scratch=path.parent / "scratch")


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def brown(image: np.ndarray) -> float:
    """Mean optical density of DAB, by the deconvolution of Ruifrok & Johnston."""
    vectors = np.array([[0.650, 0.704, 0.286], [0.268, 0.570, 0.776], [0.711, 0.424, 0.562]])
    density = -np.log((image.reshape(-1, 3) + 1) / 256)
    return float((density @ np.linalg.inv(vectors))[:, 1].mean())


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_has_as_many_patches_of_each_label_as_asked(drawn, kind):
    found = read(drawn[kind])
    assert found.counts == dict.fromkeys(sorted(LABELS[kind]), N)
    assert found.read(0).shape == (64, 64, 3)
    assert found.cases_known


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_reads_as_class_folders_too(drawn, kind):
    assert read(drawn[kind].parent, "folders").counts == read(drawn[kind]).counts


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_give_the_same_bytes(drawn, tmp_path, kind):
    again = draw_patch_set(kind, tmp_path / kind, n_per_class=N, size_px=64, seed=3)
    assert files(again.parent) == files(drawn[kind].parent)


def test_another_seed_draws_other_patches(drawn, tmp_path):
    other = draw_patch_set("natural", tmp_path, n_per_class=N, size_px=64, seed=4)
    first, second = (
        {content for name, content in files(table.parent).items() if name.endswith(".png")}
        for table in (drawn["natural"], other)
    )
    assert not first & second


def test_no_case_is_a_patient_of_the_demo(drawn):
    demo = {row["patient_id"] for row in demo_manifest()}
    for kind in KINDS:
        assert not demo & {row["case_id"] for row in rows(drawn[kind])}
    assert all(row["case_id"].startswith("pre-") for row in rows(drawn["he"]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_comes_from_several_cases(drawn, kind):
    cases = defaultdict(set)
    for row in rows(drawn[kind]):
        cases[row["label"]].add(row["case_id"])
    assert all(len(found) >= 3 for found in cases.values())


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_patches_are_the_same(drawn, kind):
    contents = list(files(drawn[kind].parent).values())
    assert len(set(contents)) == len(contents)


def test_brown_grows_with_the_score(drawn):
    amounts = defaultdict(list)
    for row in rows(drawn["ihc"]):
        image = np.asarray(Image.open(drawn["ihc"].parent / row["path"]))
        amounts[row["label"]].append(brown(image))
    means = [float(np.mean(amounts[score])) for score in SCORES]
    assert means == sorted(means)
    assert means[3] > 2 * means[2] > 4 * means[0]


def test_the_score_changes_nothing_but_the_membranes():
    images = {}
    for score in SCORES:
        rgb, nest = draw_ihc(np.random.default_rng(5), score, 256, 0.5)
        images[score] = rgb.astype(int)
        inside = cv2.erode(nest.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        # The widest blur of a membrane reaches 8 px beyond the nest.
        outside = cv2.dilate(nest.astype(np.uint8), np.ones((17, 17), np.uint8)) == 0
        assert inside.any()
        assert outside.any()
        # Stroma is the same to the last grey level; so are the grain and the stain.
        assert np.array_equal(rgb[outside], images["0"][outside])
    assert np.abs(images["3+"] - images["0"]).mean() > 10


def test_positive_and_negative_nests_have_the_same_mean_colour(drawn):
    colours = defaultdict(list)
    for row in rows(drawn["he"]):
        image = np.asarray(Image.open(drawn["he"].parent / row["path"]))
        colours[row["label"]].append(image.reshape(-1, 3).mean(axis=0))
    means = {label: np.mean(found, axis=0) for label, found in colours.items()}
    between_patches = np.std(colours["negative"], axis=0)
    assert np.all(np.abs(means["positive"] - means["negative"]) < 1.5 * between_patches)
    assert np.abs(means["stroma"] - means["negative"]).max() > 25


def test_natural_pictures_have_more_colours_than_tissue(drawn):
    def spread(kind: str) -> float:
        colours = [
            np.asarray(Image.open(drawn[kind].parent / row["path"])).reshape(-1, 3).mean(axis=0)
            for row in rows(drawn[kind])
        ]
        return float(np.std(colours, axis=0).mean())

    assert spread("natural") > 1.5 * max(spread("ihc"), spread("he"))


@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_neither_blank_nor_clipped(drawn, kind):
    for row in rows(drawn[kind]):
        image = np.asarray(Image.open(drawn[kind].parent / row["path"]))
        assert image.std() > 2
        if kind != "natural":
            assert np.mean(image == 0) < 0.05
