"""Which tensor of a file is which: by name under any prefix, or in their order."""

import re
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from her2.core.errors import UserError
from her2.encoders.loading import load_weights
from her2.encoders.naming import PREFIXES

State = dict[str, Tensor]


def block(width: int) -> nn.Module:
    return nn.ModuleDict({"conv": nn.Conv2d(width, width, 1), "bn": nn.BatchNorm2d(width)})


def attention() -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(4, 4) for name in ("q", "k", "v")})


def network() -> nn.Module:
    """Return a network with all that the order may confuse: equal blocks, and equal siblings."""
    torch.manual_seed(3)
    return nn.ModuleDict(
        {"stem": nn.Conv2d(3, 4, 1), "blocks": nn.ModuleList([block(4), block(4)]),
         "attn": attention(), "norm": nn.LayerNorm(4)}
    )  # fmt: skip


def state() -> State:
    return {name: tensor.clone() for name, tensor in network().state_dict().items()}


FOREIGN = {"stem.": "_conv_first.", "blocks.": "_body.", "attn.": "_mix.", "norm.": "_norm."}


def foreign(names: State) -> State:
    """Return a state dict as another program names it, in the same order."""
    result = {}
    for name, tensor in names.items():
        for own, theirs in FOREIGN.items():
            if name.startswith(own):
                result[theirs + name.removeprefix(own)] = tensor
    return result


def loaded(values: object, path: Path) -> tuple[State, dict]:
    """Return what the network holds after loading, and what is said of it."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(values, path)
    else:
        torch.save(values, path)
    fresh = network()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    done = load_weights(fresh, path)
    return fresh.state_dict(), done


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def prefixed(prefix: str, names: State | None = None) -> State:
    return {prefix + name: tensor for name, tensor in (names or state()).items()}


class TestPrefixes:
    @pytest.mark.parametrize(
        "prefix", [*PREFIXES, *map("".join, permutations(("teacher.", "module.", "backbone."), 3))]
    )
    def test_any_prefix_of_the_wild_is_taken_off_and_said(
        self, tmp_path: Path, prefix: str
    ) -> None:
        found, done = loaded(prefixed(prefix), tmp_path / "one.pt")
        assert same(found, state())
        assert done == {"prefix": prefix}

    @pytest.mark.parametrize(
        ("wrappers", "prefix"),
        [(("state_dict",), ""), (("model",), "module."), (("teacher",), "backbone."),
         (("state_dict", "model"), "_orig_mod."), (("module",), "student.backbone.")],
    )  # fmt: skip
    def test_wrappers_are_opened_and_said(
        self, tmp_path: Path, wrappers: tuple[str, ...], prefix: str
    ) -> None:
        values: object = prefixed(prefix)
        for wrapper in reversed(wrappers):
            values = {"epoch": 3, wrapper: values}
        found, done = loaded(values, tmp_path / "one.pt")
        assert same(found, state())
        assert done == {"inside": ".".join(wrappers)} | ({"prefix": prefix} if prefix else {})

    def test_of_a_plain_file_nothing_is_said(self, tmp_path: Path) -> None:
        for name in ("one.pt", "one.safetensors"):
            found, done = loaded(state(), tmp_path / name)
            assert same(found, state())
            assert done == {}

    def test_the_teacher_is_taken_and_the_student_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        student = {name: tensor * 2 for name, tensor in state().items()}
        both = prefixed("student.backbone.", student) | prefixed("teacher.backbone.")
        found, done = loaded({"model": both}, tmp_path / "one.pt")
        assert same(found, state())
        assert done == {"inside": "model", "prefix": "teacher.backbone."}
        assert "'teacher.backbone.' are taken; there are others" in caplog.text
        assert "'student.backbone.'" in caplog.text

    def test_rivals_of_another_type_are_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        half = {name: tensor.half() for name, tensor in state().items()}
        found, _ = loaded(prefixed("teacher.", half) | prefixed("model."), tmp_path / "one.pt")
        assert same(found, state())
        assert "'teacher.'" in caplog.text

    def test_a_name_in_common_by_chance_does_not_hide_the_prefix(self, tmp_path: Path) -> None:
        beside = {"norm.weight": torch.zeros(9)}  # of a head that is not the backbone's
        found, done = loaded(prefixed("encoder.") | beside, tmp_path / "one.pt")
        assert same(found, state())
        assert done == {"prefix": "encoder."}


class TestOrder:
    @pytest.mark.parametrize("prefix", ["", "module.", "teacher.backbone."])
    @pytest.mark.parametrize("head", [(), (torch.ones(7, 4),), (torch.ones(7, 4), torch.ones(7))])
    def test_other_names_in_the_same_order_are_loaded_and_said(
        self, tmp_path: Path, prefix: str, head: tuple[Tensor, ...], caplog
    ) -> None:
        values = foreign(state())
        values |= {f"_fc.{n}": t for n, t in zip(("weight", "bias"), head, strict=False)}
        found, done = loaded(prefixed(prefix, values), tmp_path / "one.pt")
        assert same(found, state())
        assert f"{prefix}_conv_first.weight as stem.weight" in done["order"]
        assert "none of its names is the architecture's" in caplog.text

    def exchanged(self, first: str, second: str) -> State:
        """Return the foreign file with two modules of equal shapes in the other order."""
        names = list(foreign(state()))
        a = [name for name in names if name.startswith(first)]
        b = [name for name in names if name.startswith(second)]
        start = names.index(a[0])
        order = names[:start] + b + a + names[start + len(a) + len(b) :]
        assert sorted(order) == sorted(names)
        values = foreign(state())
        return {name: values[name] for name in order}

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda case: case.exchanged("_body.0.", "_body.1."),
             r"_body\.0\.conv\.weight comes after _body\.1"),
            (lambda case: case.exchanged("_mix.q.", "_mix.k."),
             "_mix.k.weight would be attn.q.weight, and both programs know the word 'k'"),
            (lambda _: {n.replace("_mix.q", "_mix.a").replace("_mix.k", "_mix.b")
                        .replace("_mix.v", "_mix.c"): t for n, t in foreign(state()).items()},
             r"nothing says which of _mix\.a\.weight and _mix\.b\.weight"),
            (lambda _: dict(sorted(foreign(state()).items())), "they are sorted by name"),
            (lambda _: dict(list(foreign(state()).items())[:-1]), "there are 23, and the arch"),
            (lambda _: foreign(state()) | {"_x.weight": torch.ones(2, 2, 1, 1)}, "there are 25"),
            (lambda _: foreign(state()) | {"_a.weight": torch.ones(2, 2), "_a.bias": torch.ones(3)},
             "there are 26"),
            (lambda _: {n: t if n != "_norm.bias" else torch.ones(5)
                        for n, t in foreign(state()).items()},
             r"number 24, _norm\.bias, has shape \(5,\), and norm\.bias has \(4,\)"),
            (lambda _: {n.replace("_norm.weight", "_norm.gamma"): t
                        for n, t in foreign(state()).items()},
             r"number 23 is _norm\.gamma, and the architecture has norm\.weight there"),
            (lambda _: {n.replace("_norm.bias", "_later.bias"): t
                        for n, t in foreign(state()).items()},
             r"_norm\.weight and _later\.bias are not of one module"),
        ],
        ids=["numbers", "words", "alike", "sorted", "fewer", "more", "no classifier", "shape",
             "last part", "module"],
    )  # fmt: skip
    def test_evidence_against_the_order_refuses_it_and_is_said(
        self, tmp_path: Path, change: Callable[["TestOrder"], State], why: str
    ) -> None:
        with pytest.raises(UserError, match=f"its tensors' order does not help: {why}") as caught:
            loaded(change(self), tmp_path / "one.pt")
        assert "stem.weight: missing" in str(caught.value)
        assert re.search(r"- _\w[\w.]+: unexpected, of shape \(4,", str(caught.value))

    def test_of_teacher_and_student_the_teacher_is_taken(self, tmp_path: Path) -> None:
        student = {name: tensor * 2 for name, tensor in foreign(state()).items()}
        both = prefixed("student.", student) | prefixed("teacher.", foreign(state()))
        found, done = loaded(both, tmp_path / "one.pt")
        assert same(found, state())
        assert done["prefix"] == "teacher."
        assert "teacher._conv_first.weight as stem.weight" in done["order"]

    def test_a_safetensors_file_has_no_order(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="sorted by name, so that their order says nothing"):
            loaded(foreign(state()), tmp_path / "one.safetensors")

    def test_one_name_in_common_is_enough_to_go_by_names(self, tmp_path: Path) -> None:
        values = foreign(state())
        values = {n.replace("_norm.weight", "norm.weight"): t for n, t in values.items()}
        with pytest.raises(UserError, match=r"does not fit the architecture \(23 of 24 tensors\)"):
            loaded(values, tmp_path / "one.pt")

    def test_lone_layers_that_ascend_in_both_are_told_apart_by_their_numbers(
        self, tmp_path: Path
    ) -> None:
        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn1, self.bn2 = nn.LayerNorm(3), nn.LayerNorm(3)

        values = {f"_bn{n}.{kind}": torch.full((3,), float(n)) for n in (0, 1)
                  for kind in ("weight", "bias")}  # fmt: skip
        torch.save(values, tmp_path / "one.pt")
        own = Own()
        load_weights(own, tmp_path / "one.pt")
        assert (own.bn1.weight == 0).all()
        assert (own.bn2.weight == 1).all()


def test_the_first_of_each_kind_of_problem_are_named(tmp_path: Path) -> None:
    values = state()
    values = {n: t[:1] if n.startswith("attn") else t for n, t in values.items()}
    values = {n: t for n, t in values.items() if not n.startswith("blocks")}
    torch.save(values | {f"x.{n}": torch.ones(2) for n in range(9)}, tmp_path / "one.pt")
    with pytest.raises(UserError) as caught:
        load_weights(network(), tmp_path / "one.pt")
    text = str(caught.value)
    assert "blocks.0.conv.weight: missing" in text
    assert "attn.q.weight: shape (1, 4), the architecture has (4, 4)" in text
    assert "x.0: unexpected, of shape (2,)" in text
    assert "(20 of 24 tensors)" in text
