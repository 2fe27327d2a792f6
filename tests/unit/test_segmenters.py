"""Tissue segmenters: their weights, the networks, the windows, and tiles of a slide."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import cv2
import huggingface_hub.errors as hub_errors
import numpy as np
import pytest
import safetensors.torch
import tifffile
import torch
from torch import nn
from torchvision.transforms.functional import normalize, to_tensor

import her2.segmenters
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TilingSection, parse_section
from her2.config.jobs import SegmenterSpec, TileSpec
from her2.core.errors import UserError
from her2.core.files import digest
from her2.pipeline.job_table import planned_jobs
from her2.segmenters import NAMES, segmenter
from her2.segmenters.base import Segmenter, TissueSegmenter
from her2.slides.slide import Slide
from her2.storage.cache import Cache
from her2.tiling.one_slide import tile
from her2.tiling.segmentation import SegmenterNetwork
from her2.tiling.segmenter import fetch_segmenter, networks_of
from her2.tiling.segmenter_card import read_segmenter_card
from her2.tiling.stage import tile_bucket, tile_identity
from tests.unit.segmenter_makers import offline, put
from tests.unit.test_plan import plan

BUCKET = "0000-of-0001"
CPU = torch.device("cpu")


# ----- the networks


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    # HEST: as published; GrandQC: the published file has 26.6 MB.
    [("hest", 39_633_986, 362), ("grandqc", 6_569_726, 492)],
)
def test_a_network_has_the_published_size(name: str, parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        network = segmenter(name).build()
    assert sum(one.numel() for one in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.shape) for name, one in network.state_dict().items()}


def test_grandqc_is_the_unetplusplus_of_segmentation_models_pytorch() -> None:
    import segmentation_models_pytorch as smp

    with torch.device("meta"):
        theirs = smp.create_model(
            "unetplusplus",
            encoder_name="timm-efficientnet-b0",
            encoder_weights=None,
            in_channels=3,
            classes=2,
            activation=None,
        )
        own = segmenter("grandqc").build()
        assert shapes(own) == shapes(theirs)
        found = segmenter("grandqc").logits(own, torch.zeros(2, 3, 512, 512))
    assert found.shape == (2, 2, 512, 512)


def test_hest_is_the_deeplabv3_of_torchvision_with_the_last_layer_replaced() -> None:
    from torchvision.models.segmentation import deeplabv3_resnet50

    with torch.device("meta"):
        theirs = deeplabv3_resnet50(weights=None, weights_backbone=None)
        theirs.classifier[4] = nn.Conv2d(256, 2, kernel_size=1)
        own = segmenter("hest").build()
        assert shapes(own) == shapes(theirs)
        own.eval()
        assert segmenter("hest").logits(own, torch.zeros(2, 3, 512, 512)).shape == (2, 2, 512, 512)


@pytest.mark.parametrize(
    ("name", "last", "output"),
    [
        ("hest", "classifier.4", lambda found: found["out"]),
        ("grandqc", "segmentation_head.0", lambda found: found),
    ],
)
def test_a_window_is_seen_as_the_published_inference_code_sees_it(
    name: str, last: str, output: Callable[[object], torch.Tensor]
) -> None:
    """With drawn weights, shifted so that both classes are found."""
    torch.manual_seed(0)
    network = segmenter(name).build().eval()
    window = picture(128, 128)
    seen = window
    if name == "grandqc":
        jpeg = cv2.imencode(".jpg", window, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
        seen = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batch = normalize(to_tensor(seen), mean, std)[None]
    with torch.no_grad():
        first = output(network(batch))[0]
        network.get_submodule(last).bias[0] -= (first[0] - first[1]).median()
        probability = output(network(batch)).softmax(dim=1)[0]
    expected = (probability[1] > 0.5 if name == "hest" else probability.argmax(dim=0) == 0).numpy()
    assert 0.3 < expected.mean() < 0.7
    found = SegmenterNetwork(segmenter(name), network, "f" * 64, CPU).classify([window])[0]
    assert (found == expected).mean() > 0.999


@pytest.mark.parametrize("name", NAMES)
def test_a_segmenter_agrees_with_itself(name: str) -> None:
    one = segmenter(name)
    inner = one.window_px - 2 * one.margin_px
    assert inner > 0
    assert inner % one.kept_px == 0
    assert (one.sha256 is None) == (one.unpinned is not None)
    if one.jpeg_quality is not None:  # windows begin at JPEG's blocks of 16 px
        assert inner % 16 == one.margin_px % 16 == 0
    assert not one.commercial
    assert "NC" in one.licence


def test_grandqc_without_its_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'segmentation-models-pytorch"):
        segmenter("grandqc").build()


# ----- a small segmenter in place of hest, whose network looks no further than its margin


def convolutions() -> nn.Module:
    """Return a network that takes for tissue what is dark, in the mean of 5 x 5 px."""
    network = nn.Sequential(
        nn.Conv2d(3, 1, 5, padding=2, padding_mode="replicate"), nn.Conv2d(1, 2, 1)
    )
    with torch.no_grad():
        network[0].weight.fill_(1 / 75)
        network[0].bias.zero_()
        network[1].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        network[1].bias.zero_()
    return network


def small(**changed: object) -> TissueSegmenter:
    values = {
        "mpp": 1.0, "window_px": 48, "margin_px": 8, "kept_px": 2, "sha256": None,
        "mean": (0.7, 0.7, 0.7), "build": convolutions, "logits": lambda net, x: net(x),
    }  # fmt: skip
    return replace(segmenter("hest"), **{**values, **changed})


@pytest.fixture
def small_hest(monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    one = small()
    put(monkeypatch, one)
    return one


def picture(width: int, height: int) -> np.ndarray:
    """Return glass with blobs of tissue in pink, some of which touch the border."""
    generator = np.random.default_rng(3)
    noise = generator.normal(size=(height, width)).astype(np.float32)
    blobs = cv2.GaussianBlur(noise, (0, 0), sigmaX=12) > 0.01
    pixels = np.full((height, width, 3), 240, np.uint8)
    pixels[blobs] = generator.integers((150, 60, 130), (220, 140, 200), (blobs.sum(), 3))
    return pixels


@pytest.fixture
def slide_file(tmp_path: Path) -> Path:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(470, 390), tile=(64, 64), photometric="rgb")
    return path


def on_its_own(path: Path, **changed: object) -> tuple[SegmenterNetwork, Slide]:
    return SegmenterNetwork(small(**changed), convolutions(), "f" * 64, CPU), Slide(path, mpp=1.0)


def test_windows_give_what_the_whole_image_gives(slide_file: Path) -> None:
    network, slide = on_its_own(slide_file, kept_px=1)
    with slide:
        found = network.find(slide, slide.scale(), (390, 470))
        image = slide.thumbnail(1.0)
    whole = np.pad(image, ((8, 8), (8, 8), (0, 0)), constant_values=255)
    expected = network.classify([whole])[0][8:-8, 8:-8]
    assert 0.2 < expected.mean() < 0.8
    np.testing.assert_array_equal(found, expected)


def test_a_mask_kept_coarser_is_the_majority_and_lies_in_the_same_place(slide_file: Path) -> None:
    fine, slide = on_its_own(slide_file, kept_px=1)
    coarse, _ = on_its_own(slide_file, kept_px=4)
    with slide:
        full = fine.find(slide, slide.scale(), (390, 470))
        found = coarse.find(slide, slide.scale(), (97, 117))
    share = full[:388, :468].reshape(97, 4, 117, 4).mean(axis=(1, 3))
    clear = np.abs(share - 0.5) > 0.2
    assert (found == (share >= 0.5))[clear].mean() > 0.99


def test_px_of_another_size_are_put_where_they_are(tmp_path: Path) -> None:
    pixels = np.full((400, 300, 3), 240, np.uint8)
    pixels[100:300, 150:] = (190, 90, 160)
    tifffile.imwrite(tmp_path / "b.tif", pixels, tile=(64, 64), photometric="rgb")
    for mpp in (0.5, 1.0, 2.0):
        network = SegmenterNetwork(small(), convolutions(), "f" * 64, CPU)
        with Slide(tmp_path / "b.tif", mpp=mpp) as slide:
            rows, columns = np.nonzero(network.find(slide, slide.scale(), (40, 30)))
        assert np.abs(np.array([rows.min(), rows.max(), columns.min()]) - (10, 29, 15)).max() <= 1
        assert columns.max() == 29


def test_windows_are_compressed_like_the_whole_image(slide_file: Path) -> None:
    network, slide = on_its_own(slide_file, jpeg_quality=10, kept_px=1, margin_px=16, window_px=64)
    plain, _ = on_its_own(slide_file, kept_px=1, margin_px=16, window_px=64)
    with slide:
        found = network.find(slide, slide.scale(), (390, 470))
        other = plain.find(slide, slide.scale(), (390, 470))
        whole = np.pad(slide.thumbnail(1.0), ((16, 42), (16, 26), (0, 0)), constant_values=255)
    expected = network.classify([whole])[0][16:-42, 16:-26]
    assert (found == expected).mean() > 0.999  # decoders smooth colour across blocks
    assert (found != other).mean() > 0.005


# ----- weights


def save_weights(path: Path, *, wrapped: bool = True, network: nn.Module | None = None) -> Path:
    """Save weights as Lightning does: in `state_dict`, under `model.`, beside an aux classifier."""
    state = (network or convolutions()).state_dict()
    if wrapped:
        named = {f"model.{name}": one for name, one in state.items()}
        named["model.aux_classifier.4.weight"] = torch.zeros(2, 2)
        torch.save({"epoch": 3, "state_dict": named}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_local_file_becomes_a_folder_that_is_read_back(
    small_hest: Segmenter, tmp_path: Path, wrapped: bool
) -> None:
    path = save_weights(tmp_path / "weights.ckpt", wrapped=wrapped)
    card = fetch_segmenter(SegmenterSpec(segmenter="hest", weights=path), tmp_path / "out")
    assert card.licence == "CC-BY-NC-SA-4.0"
    assert card.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_segmenter_card(tmp_path / "out", small_hest) == card
    tiling = TilingSection(segmenter="hest")
    network = networks_of(tiling, {"segmenter": tmp_path / "out"}, threads=1)["segmenter"]
    assert network.identity == small_hest.identity(card.weights_sha256)
    assert network.source == f"segmenter hest, weights {card.weights_sha256[:12]}"


def test_the_network_of_an_unchanged_hest_file_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = save_weights(tmp_path / "weights.ckpt", network=segmenter("hest").build())
    stated = hashlib.sha256(path.read_bytes()).hexdigest()
    section = TilingSection(segmenter="hest", segmenter_weights=path, segmenter_sha256=stated)
    network = networks_of(section, {}, threads=1)["segmenter"]
    assert network.classify([np.zeros((64, 64, 3), np.uint8)]).shape == (1, 64, 64)


def refused(tmp_path: Path, **spec: object) -> str:
    with pytest.raises(UserError) as caught:
        fetch_segmenter(SegmenterSpec(segmenter="hest", **spec), tmp_path / "out")
    assert not (tmp_path / "out" / "card.json").exists()
    return str(caught.value)


def test_no_weights_and_no_network_says_what_to_set(
    small_hest: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    said = refused(tmp_path)
    assert said.startswith("tiling.segmenter: hest: MahmoodLab/hest-tissue-seg/deeplabv3_seg_v4")
    assert "`segmenter_weights: PATH` to a downloaded deeplabv3_seg_v4.ckpt" in said


def test_weights_that_must_be_asked_for_say_where(
    small_hest: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gated(*_: object, **__: object) -> str:
        raise hub_errors.GatedRepoError("no", response=_Response())

    monkeypatch.setattr("huggingface_hub.hf_hub_download", gated)
    said = refused(tmp_path)
    assert "tiling.segmenter: hest: access to the weights must be requested" in said
    assert small_hest.card in said


class _Response:
    """What the hub's errors read of an answer."""

    headers: ClassVar[dict[str, str]] = {}
    request = None


def test_other_bits_than_the_published_are_refused_and_can_be_stated(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "weights.ckpt")
    with pytest.raises(UserError) as caught:
        fetch_segmenter(SegmenterSpec(segmenter="hest", weights=path), tmp_path / "out")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    said = str(caught.value)
    assert "is not the published deeplabv3_seg_v4.ckpt of hest" in said
    assert found in said
    assert "4ddf8be82384544a..." in said
    assert f"`segmenter_weights: {path}` and `segmenter_sha256: {found}` under `tiling`" in said
    other = SegmenterSpec(segmenter="hest", weights=path, sha256="0" * 64)
    with pytest.raises(UserError, match=r"config's `segmenter_sha256` is 000"):
        fetch_segmenter(other, tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (lambda p: save_weights(p, network=nn.Linear(3, 3)), r"does not fit the architecture"),
        (lambda p: torch.save({"0.weight": np.zeros(2)}, p), r"holds more than tensors|no named"),
        (lambda p: p.write_bytes(save_weights(p).read_bytes()[:700]), r"is not a weights file"),
        (lambda p: None, r"tiling\.segmenter_weights: .* does not exist"),
    ],
)
def test_a_file_that_is_not_its_weights_is_refused_by_name(
    small_hest: Segmenter, tmp_path: Path, spoil: Callable[[Path], object], pattern: str
) -> None:
    path = tmp_path / "weights.ckpt"
    spoil(path)
    said = refused(tmp_path, weights=path)
    assert str(path) in said
    assert re.search(pattern, said), said


def test_a_changed_folder_is_refused(small_hest: Segmenter, tmp_path: Path) -> None:
    path, out = save_weights(tmp_path / "weights.ckpt"), tmp_path / "out"
    fetch_segmenter(SegmenterSpec(segmenter="hest", weights=path), out)
    tiling = TilingSection(segmenter="hest")
    state = {k: v + 1 for k, v in convolutions().state_dict().items()}
    safetensors.torch.save_file(state, out / "weights.safetensors")
    with pytest.raises(UserError, match="holds other weights than its card says"):
        networks_of(tiling, {"segmenter": out}, threads=1)
    values = json.loads((out / "card.json").read_text())
    (out / "card.json").write_text(json.dumps(values | {"segmenter": "other"}))
    with pytest.raises(UserError, match=r"is of other .* and tiling.segmenter is hest"):
        networks_of(tiling, {"segmenter": out}, threads=1)
    (out / "card.json").write_text("{}")
    with pytest.raises(UserError, match="is not a valid card"):
        networks_of(tiling, {"segmenter": out}, threads=1)


# ----- the config


def test_the_section_is_as_before_without_a_segmenter() -> None:
    assert not [key for key in TilingSection().model_dump() if key.startswith("segmenter")]
    stated = TilingSection(segmenter="hest", segmenter_weights=Path("/w.ckpt"))
    assert stated.as_tiled == TilingSection(segmenter="hest")
    assert TilingSection().as_tiled == TilingSection()


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"segmenter": "otsu"}, "grandqc"),
        ({"segmenter_weights": "/w.ckpt"}, "`segmenter_weights` needs `segmenter`"),
        ({"segmenter": "hest", "segmenter_sha256": "0" * 64}, "needs `segmenter_weights`"),
        ({"segmenter": "hest", "segmenter_weights": "/w", "segmenter_sha256": "12"}, "sha256"),
    ],
)
def test_a_wrong_section_is_named(values: dict[str, str], pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        parse_section(TilingSection, values, name="tiling")


def test_planning_with_a_segmenter_imports_no_torch() -> None:
    code = (
        "import sys; from her2.config import TilingSection; from her2.segmenters import segmenter;"
        "TilingSection(segmenter='hest'); segmenter('grandqc'), segmenter('hest');"
        "import her2.tiling.stage, her2.tiling.segmenter_card;"
        "print({'torch', 'torchvision', 'segmentation_models_pytorch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_jobs_are_the_same_without_a_segmenter_and_one_more_with_it(tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    path.write_bytes(b"1")
    plain, with_it = plan(), plan({"tiling/segmenter": "hest"})
    local = plan({"tiling/segmenter": "hest", "tiling/segmenter_weights": str(path)})
    jobs = {job.name for job in planned_jobs(plain)}
    assert {job.name for job in planned_jobs(with_it)} - jobs == {"fetch_segmenter hest"}
    assert not [name for name in jobs if "segmenter" in name]
    grid, bucket = next(iter(plain.config.grids)), plain.buckets[0]
    assert "segmenter" not in plain.tile_spec(grid, bucket)
    assert local.tile_spec(grid, bucket) == with_it.tile_spec(grid, bucket)
    before = local.segmenter_spec("hest")
    path.write_bytes(b"other weights")
    assert local.segmenter_spec("hest") != before


# ----- tiles


@pytest.fixture
def folder(small_hest: Segmenter, tmp_path: Path) -> Path:
    path = save_weights(tmp_path / "weights.ckpt")
    fetch_segmenter(SegmenterSpec(segmenter="hest", weights=path), tmp_path / "segmenter")
    return tmp_path / "segmenter"


TILING = TilingSection(segmenter="hest", min_tiles=1, min_tissue_um=10)


def tiled(root: Path, tiling: TilingSection, mask: str | None = None, **options: object):
    row = SlideRow("a", "a.tif", "a", {}, 1.0, mask=mask)
    spec = TileSpec(bucket=BUCKET, rows="", mpp=1.0, size=32, tiling=tiling)
    output = root / "tiles" / f"{BUCKET}.json"
    cache = Cache(root / "cache")
    entry = tile_bucket(spec, Cohort((row,), root), cache, output, **options)["a"]
    return entry, cache


def test_tiles_are_of_what_the_network_found(slide_file: Path, folder: Path) -> None:
    entry, cache = tiled(slide_file.parent, TILING, segmenter=folder)
    card = read_segmenter_card(folder, segmenter("hest"))
    assert entry.status == "ok"
    assert entry.facts.tissue_source == f"segmenter hest, weights {card.weights_sha256[:12]}"
    assert cache.path("qc", entry.key).is_file()
    again, _ = tiled(slide_file.parent, TILING, segmenter=folder)
    assert again.key == entry.key
    plain, _ = tiled(slide_file.parent, TilingSection(min_tiles=1, min_tissue_um=10))
    assert plain.facts.tissue_source == "detected"
    assert plain.key != entry.key


def test_the_key_changes_with_the_weights_and_only_where_they_are_used(
    slide_file: Path, folder: Path
) -> None:
    root = slide_file.parent
    row = SlideRow("a", "a.tif", "a", {}, 1.0)
    spec = TileSpec(bucket=BUCKET, rows="", mpp=1.0, size=32, tiling=TILING)
    plain = TileSpec(
        bucket=BUCKET, rows="", mpp=1.0, size=32,
        tiling=TilingSection(min_tiles=1, min_tissue_um=10),
    )  # fmt: skip

    def key(spec: TileSpec, row: SlideRow, weights: str | None) -> str:
        network = {} if weights is None else {"segmenter": small().identity(weights)}
        cohort = Cohort((row,), root)
        return digest(tile_identity(spec, cohort, row, None, content="f", networks=network))

    assert key(spec, row, "a" * 64) != key(spec, row, "b" * 64)
    assert key(spec, row, "a" * 64) != key(plain, row, None)
    cv2.imwrite(str(root / "m.png"), np.full((39, 47), 255, np.uint8))
    masked = SlideRow("a", "a.tif", "a", {}, 1.0, mask="m.png")
    assert key(spec, masked, "a" * 64) == key(plain, masked, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hest", "9b52861bdb040e24b6a6763054d4abcfd318250fde336568a13d9cb77ef202b8"),
        ("grandqc", "5334f13b725c24ca5502b74cf23bded0fc3c9a4a3a6840023c034a804b829e2b"),
    ],
)
def test_the_identity_of_a_tissue_network_is_what_it_was(name: str, expected: str) -> None:
    """As of before there were artefact segmenters; otherwise slides would be tiled again."""
    assert digest(segmenter(name).identity("a" * 64)) == expected


def test_a_mask_of_another_program_counts_before_the_network(
    slide_file: Path, folder: Path
) -> None:
    cv2.imwrite(str(slide_file.parent / "m.png"), np.full((39, 47), 255, np.uint8))
    entry, _ = tiled(slide_file.parent, TILING, mask="m.png", segmenter=folder)
    assert entry.facts.tissue_source == "mask file"


def test_a_failing_device_blames_no_slide(
    slide_file: Path, folder: Path, small_hest: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(network: object, windows: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("her2.segmenters.segmenter", lambda name: small(logits=full))
    with pytest.raises(UserError, match=r"cannot be run on cpu \(CUDA out of memory\)"):
        tiled(slide_file.parent, TILING, segmenter=folder)


def test_an_open_slide_is_tiled_with_local_weights(
    slide_file: Path, small_hest: Segmenter, tmp_path: Path
) -> None:
    path = save_weights(tmp_path / "weights.ckpt")
    section = TILING.model_copy(update={"segmenter_weights": path})
    with Slide(slide_file, mpp=1.0) as slide:
        found = tile(slide, 1.0, 32, tiling=section, cache=tmp_path / "cache")
    assert found.table.facts.tissue_source.startswith("segmenter hest, weights ")
    assert len(found) > 10


# ----- a further segmenter is one file

FURTHER = '''
"""Tissue segmenter: everything that is darker than glass."""

from her2.segmenters.base import TissueSegmenter


def build():
    import torch
    from torch import nn

    layer = nn.Conv2d(3, 2, 1)
    layer.load_state_dict({
        "weight": torch.tensor([[1.0] * 3, [-1.0] * 3]).reshape(2, 3, 1, 1),
        "bias": torch.tensor([-2.4, 2.4]),
    })
    return layer


SEGMENTER = TissueSegmenter(
    name="darker", title="darkness", architecture="darker", hub="a/b", file="c.pth",
    revision=None, sha256=None, unpinned="drawn", card="https://example.org", licence="MIT",
    commercial=True, mpp=4.0, window_px=64, margin_px=16, kept_px=1, tissue_class=1,
    mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), reference=("Nobody 2020", "Nowhere 1"),
    build=build, logits=lambda network, windows: network(windows),
)
'''
ARTEFACTS = '''
"""Artefact segmenter: everything that is more green than red."""

from her2.filters.base import ClassFilter
from her2.segmenters.base import ArtefactSegmenter


def build():
    import torch
    from torch import nn

    layer = nn.Conv2d(3, 2, 1)
    layer.load_state_dict({
        "weight": torch.tensor([[0.0] * 3, [-1.0, 1.0, 0.0]]).reshape(2, 3, 1, 1),
        "bias": torch.zeros(2),
    })
    return layer


GREEN = ClassFilter(
    name="artefact_moss", channel=1, limit=0.3, colour=(1, 200, 1), legend="moss", methods="moss"
)
SEGMENTER = ArtefactSegmenter(
    name="greener", title="greenness", architecture="greener", hub="a/b", file="g.pth",
    revision=None, sha256=None, unpinned="drawn", card="https://example.org", licence="MIT",
    commercial=True, mpp=2.0, window_px=64, margin_px=16, kept_px=2, artefacts=(GREEN,),
    mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), reference=("Nobody 2020", "Nowhere 1"),
    build=build, logits=lambda network, windows: network(windows),
)
'''
TILES = """
import json, sys
from pathlib import Path
import torch
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TilingSection
from her2.config.jobs import SegmenterSpec, TileSpec
from her2.segmenters import artefact_segmenter, segmenter
from her2.storage.cache import Cache
from her2.tiling.segmenter import fetch_segmenter
from her2.tiling.stage import tile_bucket

root = Path(sys.argv[1])
torch.save(segmenter("darker").build().state_dict(), root / "c.pth")
fetch_segmenter(SegmenterSpec(segmenter="darker", weights=root / "c.pth"), root / "segmenter")
torch.save(artefact_segmenter("greener").build().state_dict(), root / "g.pth")
spec = SegmenterSpec(segmenter="greener", artefacts=True, weights=root / "g.pth")
fetch_segmenter(spec, root / "greener")
tiling = TilingSection(
    segmenter="darker", artefact_segmenter="greener", artefact_limits={"moss": 0.4},
    min_tiles=1, min_tissue_um=10, max_pen=1, max_blur=1, max_fold=1,
)
spec = TileSpec(bucket="0000-of-0001", rows="", mpp=1.0, size=32, tiling=tiling)
cohort = Cohort((SlideRow("a", "a.tif", "a", {}, 1.0),), root)
cache = Cache(root / "cache")
folders = {"segmenter": root / "segmenter", "artefact_segmenter": root / "greener"}
entry = tile_bucket(spec, cohort, cache, root / "t.json", **folders)["a"]
print(json.dumps({**entry.columns(), "rejected": entry.facts.rejected}))
"""


def test_a_further_segmenter_of_either_kind_is_one_file(slide_file: Path, tmp_path: Path) -> None:
    pixels = picture(470, 390)
    pixels[64:192, 64:160] = (180, 186, 60)  # no filter takes it for ink
    tifffile.imwrite(slide_file, pixels, tile=(64, 64), photometric="rgb")
    package = tmp_path / "package"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(her2.__file__).parent, package / "her2", ignore=ignored)
    own = package / "her2" / "segmenters"
    (own / "tissue" / "darker.py").write_text(FURTHER, encoding="utf-8")
    (own / "artefacts" / "greener.py").write_text(ARTEFACTS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", TILES, str(tmp_path)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(package)}, cwd=package,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == "ok"
    assert found["tiles"] > 10
    assert found["tissue_source"].startswith("segmenter darker, weights ")
    assert found["artefact_source"].startswith("segmenter greener, weights ")
    assert found["rejected"]["artefact_moss"] == found["rejected_artefact_moss"] == 12
    assert 0 < found["artefact_moss"] < 0.3
