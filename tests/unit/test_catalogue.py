"""The catalogue: every row can be loaded and agrees with the libraries."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import timm
import torch
import torchvision
import yaml
from pydantic import ValidationError
from torch import nn
from typer.testing import CliRunner

from her2 import config
from her2.cli.main import app
from her2.config.catalogue import CatalogueRow, catalogue, row, scale_warning
from her2.config.encoder_page import chosen, explained, table, with_table
from her2.core.errors import UserError
from her2.core.types import Feature
from her2.encoders import backbones
from her2.libraries.timm import with_layers

ROWS = catalogue()
NAMES = list(ROWS)
FROM_TIMM = [n for n, r in ROWS.items() if r.library == "timm" and r.by_library]
WITH_SCALE = [n for n, r in ROWS.items() if r.mpp is not None]


def _backbone(name: str) -> nn.Module:
    """Build a row without memory for its weights; those of one architecture, once."""
    item = ROWS[name]
    return _built(item.library, item.architecture, item.feature, json.dumps(item.arguments))


@cache
def _built(library: str, architecture: str, feature: Feature, arguments: str) -> nn.Module:
    with torch.device("meta"):
        return backbones.build_backbone(
            library, architecture, feature=feature, arguments=json.loads(arguments)
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_row_builds_and_gives_the_dimension_it_states(name: str) -> None:
    item = ROWS[name]
    backbone = _backbone(name)
    with torch.device("meta"):
        encoder = backbones.Encoder(
            backbone, feature=item.feature, mean=item.mean, std=item.std
        ).eval()
        patches = torch.empty(2, item.size, item.size, 3, dtype=torch.uint8)
        with torch.inference_mode():
            assert encoder(patches).shape == (2, item.dimension)


@pytest.mark.parametrize(
    ("name", "patch_px", "prefix"),
    [
        ("vit-small", 16, 1), ("vit-base", 16, 1),
        ("dinov2-small", 14, 1), ("dinov2-base", 14, 1), ("dinov2-large", 14, 1),
        ("lunit-vits16", 16, 1), ("lunit-vits8", 8, 1),
        ("kaiko-vits16", 16, 1), ("kaiko-vits8", 8, 1), ("kaiko-vitb16", 16, 1),
        ("kaiko-vitb8", 8, 1), ("kaiko-vitl14", 14, 5),
        ("phikon", 16, 1), ("phikon-v2", 16, 1),
        ("uni", 16, 1), ("uni2-h", 14, 9), ("virchow", 14, 1), ("virchow2", 14, 5),
        ("gigapath", 16, 1), ("gigapath-flash", 16, 1), ("h-optimus-0", 14, 5),
        ("h-optimus-1", 14, 5), ("h0-mini", 14, 5), ("gpfm", 14, 1), ("mstar", 16, 1),
        ("pathorchestra", 16, 1), ("dinov3-small", 16, 5), ("dinov3-base", 16, 5),
        ("dinov3-large", 16, 5), ("midnight-12k", 14, 1), ("hibou-b", 14, 5), ("hibou-l", 14, 5),
        ("openmidnight", 14, 5), ("openpath", 14, 5),
    ],
)  # fmt: skip
def test_a_transformer_cuts_its_patch_into_whole_tokens(
    name: str, patch_px: int, prefix: int
) -> None:
    item = ROWS[name]
    backbone = _backbone(name)
    side = item.size // patch_px
    assert side * patch_px == item.size
    assert backbone.patch_embed.grid_size == (side, side)
    assert backbone.num_prefix_tokens == prefix


# Parameters in millions, as the model cards and papers state them.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("lunit-vits16", 21.7), ("kaiko-vitb8", 85.8), ("phikon", 85.8), ("phikon-v2", 303.4),
        ("uni", 303.4), ("uni2-h", 681.4), ("virchow", 631.2), ("virchow2", 631.2),
        ("gigapath", 1134.9), ("h-optimus-0", 1134.8), ("h0-mini", 85.7), ("gpfm", 303.2),
        ("mstar", 303.4), ("pathorchestra", 303.4), ("dinov3-small", 21.6), ("dinov3-base", 85.6),
        ("dinov3-large", 303.1), ("midnight-12k", 1134.8), ("hibou-b", 85.7), ("hibou-l", 303.7),
        ("openmidnight", 1134.8), ("openpath", 1134.8),
    ],
)  # fmt: skip
def test_an_architecture_has_the_published_number_of_parameters(name: str, millions: float) -> None:
    backbone = _backbone(name)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("name", FROM_TIMM)
def test_what_timm_publishes_is_normalised_as_timm_says(name: str) -> None:
    item = ROWS[name]
    published = timm.models.get_pretrained_cfg(item.architecture)
    assert item.mean == tuple(published.mean)
    assert item.std == tuple(published.std)
    assert published.hf_hub_id == f"timm/{item.architecture}"
    assert item.card.endswith(published.hf_hub_id)
    assert item.licence.lower() == published.license
    own = published.input_size[-1]
    if name.startswith("dinov2"):
        assert own == 518  # and the row resamples it
        assert item.arguments["img_size"] == item.size == 224
    else:
        assert item.size == own


def test_alexnet_is_normalised_as_torchvision_says() -> None:
    published = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()
    assert ROWS["alexnet"].mean == tuple(published.mean)
    assert ROWS["alexnet"].std == tuple(published.std)


def test_the_encoders_people_ask_for_are_there() -> None:
    assert {
        "alexnet", "resnet18", "resnet50", "vit-small", "vit-base", "dinov2-small", "dinov2-base",
        "dinov2-large", "uni", "uni2-h", "virchow", "virchow2", "gigapath", "h-optimus-0",
        "h-optimus-1", "phikon", "phikon-v2", "kaiko-vits16", "lunit-vits16",
    } <= set(NAMES)  # fmt: skip


def test_names_are_legal_and_lower_case() -> None:
    for name in NAMES:
        assert re.fullmatch(config.NAME_PATTERN, name)
        assert name == name.lower()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_complete(name: str) -> None:
    item = ROWS[name]
    assert item.name == name
    assert item.title
    assert item.checked
    assert (item.ask_at is not None) == item.gated
    for vector in (item.mean, item.std):
        assert len(vector) == 3
        assert all(0 < value < 1 for value in vector)
    assert (item.domain == "natural") == (item.mpp is None)
    if item.library == "timm" and "vit" in item.architecture:
        assert item.arguments["img_size"] == item.size
    if item.hub:
        assert item.file
        # A tag fetches the library's own weights, and they are what the row is about.
        assert not item.by_library or item.hub == f"timm/{item.architecture}"
        assert Path(item.file).suffix in (".bin", ".safetensors", ".pth", ".pt")


def test_every_field_says_what_it_is() -> None:
    assert all(field.description for field in CatalogueRow.model_fields.values())


def test_the_config_knows_the_precisions_of_the_catalogue() -> None:
    precisions = get_args(CatalogueRow.model_fields["precision"].annotation)
    assert set(precisions) < set(get_args(config.Precision))


def test_known_departures_from_imagenet_are_kept() -> None:
    imagenet = (0.485, 0.456, 0.406)
    departing = {name for name, item in ROWS.items() if item.mean != imagenet}
    assert departing == {
        "vit-small", "vit-base", "lunit-vits16", "lunit-vits8", "kaiko-vits16", "kaiko-vits8",
        "kaiko-vitb16", "kaiko-vitb8", "kaiko-vitl14", "h-optimus-0", "h-optimus-1", "h0-mini",
        "midnight-12k", "hibou-b", "hibou-l",
    }  # fmt: skip


def test_the_table_prints_every_row() -> None:
    lines = table().splitlines()
    assert lines[0].split()[0] == "name"
    assert [line.split()[0] for line in lines[1:]] == NAMES
    for line in lines[1:]:
        item = ROWS[line.split()[0]]
        assert f" {item.dimension} " in line
        assert item.licence in line
        assert item.ask_at is None or line.endswith(item.ask_at)


def test_the_committed_table_is_that_of_the_rows() -> None:
    """`python -m her2.config.encoder_page docs/encoders.md` renews it."""
    page = (Path(__file__).parents[2] / "docs/encoders.md").read_text()
    assert with_table(page) == page
    assert all(f"[`{name}`](" in page for name in NAMES)


def test_rows_are_chosen_by_what_a_user_may_do_and_needs() -> None:
    def names(**wanted: Any) -> set[str]:
        return {item.name for item in chosen(**wanted)}

    assert names() == set(NAMES)
    ihc = names(domain="ihc")
    assert {"uni2-h", "virchow2"} <= ihc < names(domain="he")
    assert "resnet50" in names(domain="natural") - names(domain="he")
    assert "uni" not in names(ungated=True)
    assert "phikon" in names(ungated=True)
    assert {"virchow", "h-optimus-0", "resnet50"} <= names(commercial=True)
    assert not {"uni", "phikon", "gigapath"} & names(commercial=True)
    both = names(ungated=True, commercial=True)
    assert both == names(ungated=True) & names(commercial=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_explained_with_its_pin_its_licence_and_a_config(name: str) -> None:
    item, said = ROWS[name], explained(ROWS[name])
    facts = [item.sha256 or item.unpinned, item.licence, item.card, item.note, item.ask_at,
             item.terms, item.revision, f"model: {name}"]  # fmt: skip
    assert all(fact in said for fact in facts if fact)
    values = yaml.safe_load(said.partition("encoders: ")[2])["mine"]
    assert config.EncoderSection(**values).size == item.size


def test_the_command_lists_chooses_and_explains() -> None:
    def said(*options: str) -> str:
        result = CliRunner().invoke(app, ["encoders", *options])
        assert result.exit_code == 0, result.output
        return str(result.output)

    assert said() == f"{table()}\n"
    assert "phikon-v2" in said("--open")
    assert "uni2-h" not in said("--open")
    assert "uni2-h" in said("--domain", "ihc")
    assert "MahmoodLab/UNI" in said("uni")


def test_papers_are_missing_only_where_there_is_none() -> None:
    assert {name for name, item in ROWS.items() if item.paper is None} == {"openpath"}


def test_encoders_of_several_scales_are_not_warned_of_at_them() -> None:
    for name in ("lunit-vits16", "lunit-vits8"):
        assert scale_warning(row(name), 0.25) is None
    for name in (n for n in NAMES if n.startswith("kaiko")):
        for mpp in (0.25, 0.5, 1.0, 2.0):
            assert scale_warning(row(name), mpp) is None
        assert scale_warning(row(name), 4.0) is not None


def test_reading_the_catalogue_imports_no_torch() -> None:
    code = (
        "import sys; from her2.config import encoder_page; encoder_page.table(); "
        "assert not {'torch', 'timm', 'torchvision'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", WITH_SCALE)
def test_no_warning_within_twenty_per_cent_of_a_trained_scale(name: str) -> None:
    item = ROWS[name]
    for trained in (item.mpp, *item.also_mpp):
        assert trained is not None
        for share in (0.8, 0.9, 1.0, 1.1, 1.2):
            assert scale_warning(item, trained * share) is None
    finest, coarsest = min(item.mpp, *item.also_mpp, 99), max(item.mpp, *item.also_mpp, 0)
    assert scale_warning(item, finest * 0.79) is not None
    assert scale_warning(item, coarsest * 1.21) is not None


def test_a_scale_warning_names_both_scales() -> None:
    assert scale_warning(row("uni"), 1.0) == (
        "uni was trained at 0.5 um/px but gets patches at 1 um/px, where nuclei appear 0.5 times "
        "as large."
    )
    # Virchow2 saw 0.25, 0.5, 1 and 2 um/px, and nothing between.
    assert scale_warning(row("virchow2"), 1.0) is None
    assert scale_warning(row("virchow2"), 0.7) is not None


def test_photographs_have_no_scale_to_warn_about() -> None:
    assert scale_warning(row("resnet50"), 7.0) is None
    assert "mpp" not in row("resnet50").defaults()
    assert row("virchow2").defaults() == {
        "size": 224,
        "mpp": 0.5,
        "feature": "class_and_mean",
        "precision": "float16",
        "storage": "float16",
        "domain": "he_ihc",
    }


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("UNI2", "uni2-h"),
        ("MahmoodLab/UNI2-h", "uni2-h"),
        ("hoptimus0", "h-optimus-0"),
        ("prov-gigapath", "gigapath"),
        ("phikonv2", "phikon-v2"),
    ],
)
def test_an_unknown_name_gets_near_ones(wanted: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {near}"):
        row(wanted)


def test_a_name_like_none_gets_no_suggestion() -> None:
    with pytest.raises(UserError, match=r"no 'zzzz'\. `her2 encoders`"):
        row("zzzz")


def test_layers_are_named_and_only_named() -> None:
    resolved = with_layers({"act_layer": "silu", "depth": 3})
    assert resolved == {"act_layer": nn.SiLU, "depth": 3}
    assert with_layers(resolved) == resolved
    for bad in (
        {"act_layer": "torch.nn.SiLU"},
        {"mlp_layer": "__import__('os').system"},
        {"mlp_layer": "silu"},
        {"norm_layer": "LayerNorm"},
    ):
        with pytest.raises(UserError, match="not a supported layer"):
            with_layers(bad)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"gated": True, "ask_at": None}, "needs `ask_at`"),
        ({"file": None}, "must be given together"),
        ({"hub": None, "file": None, "layout": "transformers_vit"}, "needs `hub` and `file`"),
        ({"mpp": None, "mpp_basis": None}, "needs `mpp`"),
        ({"mpp_basis": None}, "given together"),
        ({"sha256": None}, "either `sha256` or `unpinned`"),
        ({"unpinned": "not known"}, "either `sha256` or `unpinned`"),
        ({"revision": None}, "needs its `revision`"),
        ({"sha256": "56ef09b"}, "should match pattern"),
        ({"revision": "main"}, "should match pattern"),
        ({"commercial": "conditions"}, "needs `terms`"),
        ({"terms": "ask"}, "needs `terms`"),
        ({"size": 256}, "must equal `size`"),
        ({"arguments": {"num_classes": 0}}, "set by the code"),
        ({"mean": (123.7, 116.3, 103.5)}, "less than 1"),
        ({"normalisation": "imagenet"}, "not permitted"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(
    change: dict[str, object], complaint: str
) -> None:
    values = row("uni").model_dump()
    with pytest.raises(ValidationError, match=complaint):
        CatalogueRow(**(values | change))
