"""The declarations that a head's file needs, and the messages about missing ones."""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import her2.heads
from her2.config.heads import HEADS
from her2.core.errors import UserError
from her2.heads import HeadOptions, discover
from her2.heads.abmil import AttentionSection
from her2.heads.logistic import LogisticSection
from her2.heads.mean import MeanSection

every_section = pytest.mark.parametrize("section", HEADS.values(), ids=HEADS)

MINE = """
from typing import ClassVar, Literal
from her2.heads import Projected, named

class MineSection(Projected):
    head: Literal["new"] = named("new")
    label = "my pooling"
    citations: ClassVar = {"Doe 2031": "Results 7"}

def network(options, dimension, outputs): ...
"""

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that adds a file to the package for the duration of a test."""
    monkeypatch.setattr(her2.heads, "__path__", [*her2.heads.__path__, str(tmp_path)])

    def new(name: str, text: str) -> Path:
        (tmp_path / f"{name}.py").write_text(text)
        return tmp_path / f"{name}.py"

    return new


def test_a_file_in_the_package_is_a_head(write: Write) -> None:
    write("found_there", MINE)
    assert list(discover()) == sorted([*HEADS, "new"])


def test_every_file_of_the_package_is_found() -> None:
    files = {path.stem for path in Path(her2.heads.__file__).parent.glob("*.py")} - {
        "__init__",
        "layers",
    }
    assert {section.__module__.rpartition(".")[2] for section in HEADS.values()} == files


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("says_nothing", MINE, "X = 1", "a section with `head: Literal[...] = named(...)`, a func"),
        ("has_no_name", "    head: Literal", "    other: Literal", "a section with `head:"),
        ("has_no_network", "def network", "def net", "a function `network` missing"),
        ("has_no_label", "    label =", "    # label =", "MineSection.label missing"),
        ("cites_nothing", "    citations", "    # citations", "MineSection.citations missing"),
    ],
)
def test_a_file_that_declares_no_head_is_named_with_what_is_missing(
    write: Write, name: str, old: str, new: str, words: str
) -> None:
    path = write(name, MINE.replace(old, new))
    with pytest.raises(UserError, match=re.escape(f"{path}: declares no head: ")) as caught:
        discover()
    assert words in str(caught.value)
    assert "her2/heads/mean.py" in str(caught.value)


def test_an_option_without_limits_is_named(write: Write) -> None:
    write("mine", MINE.replace("    label", "    width: int = 3\n    label"))
    with pytest.raises(UserError, match="the limits of MineSection.width .* missing"):
        discover()


def test_two_heads_of_one_name_are_refused(write: Write) -> None:
    path = write("is_second", MINE.replace('"new"', '"abmil"'))
    with pytest.raises(UserError, match="is also declared in her2.heads.abmil") as caught:
        discover()
    assert str(path) in str(caught.value)


def test_one_citation_for_two_works_is_refused(write: Write) -> None:
    write("cites_another", MINE.replace("Doe 2031", "Lu et al. 2021"))
    with pytest.raises(UserError, match="'Lu et al. 2021' appeared in 'Results 7'"):
        discover()


@every_section
def test_a_file_gives_its_equation_and_its_source(section: type[HeadOptions]) -> None:
    text = import_module(section.__module__).__doc__ or ""
    assert re.search(r"^    \S.*=", text, re.MULTILINE)
    assert re.search(r"^Sources?: .*", text, re.MULTILINE)


@every_section
def test_a_citation_is_authors_and_year(section: type[HeadOptions]) -> None:
    for work, where in section.citations.items():
        assert re.fullmatch(r"[A-Z]\w+(?: et al\.| and [A-Z]\w+)? (?:19|20)\d\d[a-z]?", work)
        assert where


def test_an_option_has_words_of_its_own_or_those_of_its_key() -> None:
    assert AttentionSection.words("hidden") == "projection width"
    assert AttentionSection.words("attention") == "attention width"
    assert AttentionSection.words("dropout") == "dropout"
    assert LogisticSection.words("strengths") == "inverse strength of the penalty"


def test_a_network_has_as_many_inputs_and_outputs_as_asked() -> None:
    network = MeanSection(hidden=8).build(5, 3)
    assert network.project[0].weight.shape == (8, 5)
    assert network.classifier.weight.shape == (3, 8)
