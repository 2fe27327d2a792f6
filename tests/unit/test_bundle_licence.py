"""Weights of an encoder are in a bundle only where their licence lets anybody pass them on."""

from dataclasses import replace
from typing import Any

import pytest

from her2.config.catalogue import catalogue
from her2.core.errors import UserError
from her2.encoders.card import EncoderCard
from her2.frozen.bundle.licence import may_be_passed_on, permission

OPEN = {"alexnet", "resnet18", "resnet50", "vit-small", "vit-base", "dinov2-small", "dinov2-base",
        "dinov2-large", "midnight-12k", "openpath"}  # fmt: skip


def card(**changed: Any) -> EncoderCard:
    blank = EncoderCard(
        source="checkpoint", library="timm", architecture="resnet18", arguments={},
        feature="pooled", dimension=512, size=224, mpp=0.5, mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5), precision="auto", storage="float16", licence="",
        weights_sha256="0" * 64, provenance={},
    )  # fmt: skip
    return replace(blank, **changed)


@pytest.mark.parametrize("name", list(catalogue()))
def test_a_row_is_passed_on_only_with_a_permissive_licence(name: str) -> None:
    row = catalogue()[name]
    given = card(source="catalogue", architecture=row.architecture, licence=row.licence)
    found = may_be_passed_on([given], name)
    assert found.allowed == (name in OPEN)
    assert row.licence in found.why


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("apache-2.0", True), ("Apache-2.0", True), ("mit", True), ("MIT (timm)", True),
        ("cc-by-4.0", True), ("cc-by-nc-4.0", False), ("other", False), ("", False),
        ("Apache-2.0, research use only", False), ("gpl-3.0", False), ("not mit", False),
        ("mit, but ask first", False), ("(mit)", False),
    ],
)  # fmt: skip
def test_only_a_licence_without_conditions_is_permissive(licence: str, allowed: bool) -> None:
    assert may_be_passed_on([card(source="timm", licence=licence)], None).allowed == allowed


def pretrained(start: str) -> EncoderCard:
    return card(source="pretrain", provenance={"init": {"from": start}})


@pytest.mark.parametrize(
    ("lineage", "allowed"),
    [
        ([card(source="random")], True),
        ([card()], False),
        ([pretrained("random")], True),
        ([pretrained("uni"), card(source="catalogue", provenance={"catalogue": "uni"},
                                  licence="CC-BY-NC-ND-4.0")], False),
        ([pretrained("open"), card(source="catalogue", architecture="resnet18.a1_in1k",
                                   licence="Apache-2.0")], True),
        ([pretrained("mine"), card()], False),
        ([pretrained("other"), pretrained("random")], True),
        ([pretrained("other"), pretrained("mine"), card()], False),
        ([pretrained("lost")], False),
    ],
)  # fmt: skip
def test_pre_trained_weights_have_the_licence_of_those_they_started_from(
    lineage: list[EncoderCard], allowed: bool
) -> None:
    assert may_be_passed_on(lineage, None).allowed == allowed


def test_published_first_weights_have_the_librarys_licence() -> None:
    start = replace(pretrained("published"), architecture="resnet18.a1_in1k")
    assert may_be_passed_on([start], None).allowed
    assert not may_be_passed_on([replace(start, library="torchvision")], None).allowed


@pytest.mark.parametrize("given", [[card()], [pretrained("mine"), card()], [pretrained("lost")]])
def test_a_word_lets_weights_without_a_licence_in(given: list[EncoderCard]) -> None:
    assert not permission(given, None, None).allowed
    found = permission(given, None, "trained by us")
    assert found.allowed
    assert found.why.endswith("trained by us")


@pytest.mark.parametrize("name", sorted(set(catalogue()) - OPEN))
def test_no_word_lets_weights_in_whose_licence_forbids_it(name: str) -> None:
    licence = catalogue()[name].licence
    with pytest.raises(UserError, match="may not be passed on") as caught:
        permission([card(source="catalogue", licence=licence)], name, "I may")
    assert licence in str(caught.value)
