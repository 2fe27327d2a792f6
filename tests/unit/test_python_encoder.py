"""An encoder in a Python file: run with consent alone, and the same at every start."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from her2.cli.doctor.base import Situation
from her2.cli.doctor.checks.encoders import find
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import Config, EncoderSection, TilingSection
from her2.config.jobs import EmbedSpec, TileSpec
from her2.core.consent import VARIABLE
from her2.core.errors import UserError
from her2.embedding.stage import embed_bucket
from her2.encoders.card import CARD_NAME, EncoderCard, read_card
from her2.encoders.stage import read_encoder
from her2.frozen.bundle.licence import permission
from her2.frozen.bundle.schema import Encoder as BundledEncoder
from her2.pipeline.inputs import check_inputs
from her2.storage.cache import Cache
from her2.storage.features import open_store
from her2.synthetic import draw_slide
from her2.tiling.stage import tile_bucket
from tests.unit.products import materialise

pytestmark = pytest.mark.usefixtures("one_thread")

GOOD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2)
        self.register_buffer("shift", torch.arange(5.0))

    def forward(self, x):
        return self.conv(x).mean((2, 3)) + self.shift

def build():
    return Net()

other = 3
"""
BUCKET = "0000-of-0001"


@pytest.fixture(autouse=True)
def _consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")


def section(path: Path, function: str = "build", **changed: object) -> EncoderSection:
    values = {
        "source": "python", "module": f"{path}:{function}", "mpp": 1.0, "size": 32,
        "domain": "he", "mean": (0.5,) * 3, "std": (0.2,) * 3, "precision": "float32",
        "storage": "float32",
    }  # fmt: skip
    return EncoderSection(**(values | changed))


def written(folder: Path, code: str = GOOD) -> Path:
    path = folder / "mine.py"
    path.write_text(code)
    return path


def made(folder: Path, code: str = GOOD, function: str = "build") -> EncoderCard:
    return materialise(section(written(folder, code), function), 1, folder / "out")


def test_it_is_saved_as_tensors_and_built_again_from_the_same_file(tmp_path: Path) -> None:
    card = made(tmp_path)
    assert (card.source, card.library, card.architecture) == ("python", "python", "build")
    assert card.dimension == 5
    encoder, again = read_encoder(tmp_path / "out")
    assert again == card
    torch.manual_seed(1)  # the seed of the job, so the network's own initial weights
    net = torch.nn.Conv2d(3, 5, 3, stride=2)
    patches = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    x = (patches.permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
    expected = net(x).mean((2, 3)) + torch.arange(5.0)
    torch.testing.assert_close(encoder(patches), expected, rtol=1e-4, atol=1e-5)


def test_its_identity_is_the_files_content_and_the_weights(tmp_path: Path) -> None:
    cards = {}
    for name, code in {"a": GOOD, "b": GOOD, "c": GOOD + "\n# a remark\n"}.items():
        (tmp_path / name).mkdir()
        cards[name] = made(tmp_path / name, code)
    assert cards["a"].digest == cards["b"].digest
    assert cards["a"].weights_sha256 == cards["c"].weights_sha256
    assert cards["a"].digest != cards["c"].digest


def test_a_project_with_its_file_may_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "here"
    project.mkdir()
    monkeypatch.chdir(project)
    card = made(project)
    assert not Path(card.provenance["code"]).is_absolute()
    project.rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    assert read_encoder(tmp_path / "there" / "out")[1] == card


def test_slides_are_embedded_with_it(tmp_path: Path) -> None:
    made(tmp_path)
    draw_slide(
        slide_id="demo-001-a", patient_id="demo-001", her2="3+", site="north", seed=7,
        slide_path=tmp_path / "one.svs", mask_path=tmp_path / "one.png", side_px=768,
    )  # fmt: skip
    cohort = Cohort((SlideRow("one", "one.svs", "one", {}),), tmp_path)
    cache, tiles = Cache(tmp_path / "cache"), tmp_path / f"tiles/{BUCKET}.json"
    spec = TileSpec(bucket=BUCKET, rows="", mpp=1.0, size=32, tiling=TilingSection(min_tiles=1))
    tile_bucket(spec, cohort, cache, tiles)
    entry = embed_bucket(
        EmbedSpec(bucket=BUCKET, rows="", max_failed_tiles=0.0), cohort, cache, tiles=tiles,
        encoder=tmp_path / "out", output=tmp_path / f"features/{BUCKET}.json", batch_size=8,
        threads=1,
    )["one"]  # fmt: skip
    assert (entry.status, entry.dimension) == ("ok", 5)
    assert np.isfinite(np.array(open_store(cache.path("features", entry.key)).features)).all()


class TestConsent:
    CODE = "import pathlib\npathlib.Path(__file__).with_name('it-ran').touch()\n" + GOOD

    @pytest.mark.parametrize("value", [None, "", "0", "yes", "true"])
    def test_without_consent_nothing_is_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
    ) -> None:
        if value is None:
            monkeypatch.delenv(VARIABLE)
        else:
            monkeypatch.setenv(VARIABLE, value)
        with pytest.raises(UserError, match=r"mine\.py is Python code.*HER2_ALLOW_CODE=1"):
            made(tmp_path, self.CODE)
        assert not (tmp_path / "it-ran").exists()

    def test_with_consent_the_same_file_is_run(self, tmp_path: Path) -> None:
        made(tmp_path, self.CODE)
        assert (tmp_path / "it-ran").exists()

    def test_loading_needs_consent_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made(tmp_path, self.CODE)
        (tmp_path / "it-ran").unlink()
        monkeypatch.delenv(VARIABLE)
        read_card(tmp_path / "out")  # a report reads cards, and runs nothing
        with pytest.raises(UserError, match="HER2_ALLOW_CODE=1"):
            read_encoder(tmp_path / "out")
        assert not (tmp_path / "it-ran").exists()

    def config(self, tmp_path: Path) -> Config:
        encoder = section(written(tmp_path, self.CODE)).model_dump(mode="json")
        return Config.model_validate(
            {
                "results": str(tmp_path / "results"),
                "cache": str(tmp_path / "cache"),
                "cohort": {"slides": str(tmp_path / "slides.csv")},
                "tasks": {"t": {"label": "her2", "classes": {"a": ["0"], "b": ["1"]}}},
                "encoders": {"mine": encoder},
                "heads": {"mean": {}},
            }
        )

    def test_a_run_without_consent_stops_before_its_first_job(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config, cohort = self.config(tmp_path), Cohort((), tmp_path)
        check_inputs(config, cohort)
        monkeypatch.delenv(VARIABLE)
        with pytest.raises(UserError, match=r"encoders\.mine\.module: .*HER2_ALLOW_CODE=1"):
            check_inputs(config, cohort)
        assert not (tmp_path / "it-ran").exists()

    def test_her2_doctor_says_that_a_run_could_not_begin(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = self.config(tmp_path)
        situation = cast("Situation", SimpleNamespace(config=config, results=tmp_path / "results"))
        assert [one.level for one in find(situation)] == ["ok"]
        monkeypatch.delenv(VARIABLE)
        (found,) = find(situation)
        assert (found.level, found.mend) == ("bad", "export HER2_ALLOW_CODE=1")

    @pytest.mark.parametrize("word", [None, "MIT, written by us"])
    def test_no_bundle_is_made_of_code(self, tmp_path: Path, word: str | None) -> None:
        with pytest.raises(UserError, match="`source: python`, and a bundle holds no code"):
            permission([made(tmp_path)], None, word)

    def test_a_bundle_cannot_name_code(self, tmp_path: Path) -> None:
        card = made(tmp_path)
        own = {name: getattr(card, name) for name in EncoderCard.__dataclass_fields__}
        with pytest.raises(ValidationError, match="a bundle may not name code"):
            BundledEncoder(
                **own, name="mine", model="build", domain="he", ran_in=("float32",),
                digest=card.digest, revision=None, included=False, why="x",
            )  # fmt: skip


class TestConfig:
    @pytest.mark.parametrize(
        ("changed", "why"),
        [
            ({"module": None}, "needs `module: FILE.py:FUNCTION`"),
            ({"model": "timm/resnet18"}, "needs `module: FILE.py:FUNCTION`, and no `model`"),
            ({"module": "mine.py"}, "String should match pattern"),
            ({"module": "mine.txt:build"}, "String should match pattern"),
            ({"module": "mine.py:os.system"}, "String should match pattern"),
            ({"mean": None, "std": None}, "needs `mean` and `std`"),
            ({"feature": "class_token"}, "has no `feature`"),
            ({"domain": None}, "state which images"),
            ({"checkpoint": "x.pt"}, "only it and `source: catalogue` allow"),
            ({"source": "random", "model": "timm/resnet18"}, "`module` is for `source: python`"),
        ],
        ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
    )
    def test_keys_that_do_not_fit_are_named(self, changed: dict[str, object], why: str) -> None:
        values = {"model": "build"} if changed.get("module", 1) is None else {}
        with pytest.raises(ValidationError, match=why):
            section(Path("mine.py"), **(values | changed))

    def test_a_section_survives_its_spec(self) -> None:
        one = section(Path("mine.py"))
        assert EncoderSection.model_validate_json(one.model_dump_json()) == one


WRONG = {
    "no file": (None, r"mine\.py: does not exist"),
    "no Python": ("def build(:\n", r"mine\.py, line 1: cannot be run \(SyntaxError"),
    "fails at once": ("\n1 / 0\n", r"mine\.py, line 2: cannot be run \(ZeroDivisionError"),
    "ends": ("import sys\nsys.exit(3)", r"line 2: cannot be run \(SystemExit: 3\)"),
    "no function": ("def make(): ...\n", r"has no function 'build'. It defines make;"),
    "nothing": ("", r"has no function 'build'. It defines none;"),
    "no callable": ("build = 3\n", "has no function 'build'"),
    "raises": ("def build():\n    return {}['a']\n",
               r"line 2: build\(\) failed \(KeyError: 'a'\)"),
    "wants arguments": ("def build(size): ...\n", r"build\(\) failed \(TypeError: .*size"),
    "returns nothing": ("def build(): ...\n", "returned nothing instead of a torch.nn.Module"),
    "returns a pair": ("from torch import nn\ndef build(): return nn.ReLU(), None\n",
                       r"returned a tuple \(ReLU, NoneType\) instead"),
    "returns the class": ("from torch import nn\ndef build(): return nn.ReLU\n",
                          "returned a type instead"),
}  # fmt: skip
COMPUTES = {
    "tokens": ("x.flatten(2)", r"gives float32 of shape \(2, 3, 1024\) for 2 patches of 32 px"),
    "one row": ("x.mean((0, 2, 3))", r"shape \(3,\)"),
    "no features": ("x.flatten(1)[:, :0]", r"shape \(2, 0\)"),
    "whole numbers": ("x.flatten(1).long()", "gives int64"),
    "a tuple": ("(x, x)", r"gives a tuple \(Tensor, Tensor\) for a batch"),
    "NaN": ("x.flatten(1) / 0", "not finite"),
    "raises": ("self.conv(x)", r"line 5: fails on patches \(2, 3, 32, 32\) \(AttributeError"),
    "chance": ("torch.nn.functional.dropout(x).flatten(1)", "other features for the same patch"),
    "the batch": ("(x - x.mean(0)).flatten(1)", "depend on the others in its batch"),
    "hidden weights": ("x.flatten(1) @ self.hidden", "built again with the same state_dict"),
}  # fmt: skip
NETWORK = """import torch
class Net(torch.nn.Module):
    hidden = torch.randn(3072, 4)
    def forward(self, x):
        return {}
def build(): return Net()
"""


@pytest.mark.parametrize(
    ("code", "why"),
    [*WRONG.values(), *((NETWORK.format(what), why) for what, why in COMPUTES.values())],
    ids=[*WRONG, *(f"computes {name}" for name in COMPUTES)],
)
def test_what_is_no_encoder_is_named_with_its_line(
    tmp_path: Path, code: str | None, why: str
) -> None:
    path = tmp_path / "mine.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(UserError, match=why):
        materialise(section(path), 1, tmp_path / "out")
    assert not (tmp_path / "out" / CARD_NAME).exists()


class TestSince:
    def test_a_file_that_changed_is_refused_with_both_digests(self, tmp_path: Path) -> None:
        card = made(tmp_path)
        written(tmp_path, GOOD + "\n")
        with pytest.raises(UserError, match="has changed since the encoder in .* was made") as bad:
            read_encoder(tmp_path / "out")
        assert card.arguments["code_sha256"] in str(bad.value)

    def test_a_file_that_is_gone_is_named(self, tmp_path: Path) -> None:
        made(tmp_path)
        (tmp_path / "mine.py").unlink()
        with pytest.raises(UserError, match=r"mine\.py: does not exist"):
            read_encoder(tmp_path / "out")

    def test_code_that_builds_another_network_elsewhere_is_named(self, tmp_path: Path) -> None:
        code = GOOD.replace(
            "    return Net()",
            "    import os\n    return Net() if 'ELSE' not in os.environ else nn.Conv2d(3, 5, 1)",
        )
        made(tmp_path, code)
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("ELSE", "1")
            with pytest.raises(UserError, match="built another network than before"):
                read_encoder(tmp_path / "out")

    def test_a_card_that_names_another_file_is_no_card(self, tmp_path: Path) -> None:
        made(tmp_path)
        path = tmp_path / "out" / CARD_NAME
        values = json.loads(path.read_text())
        values["arguments"]["code_sha256"] = "0" * 64
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match="does not match its own digest"):
            read_encoder(tmp_path / "out")
