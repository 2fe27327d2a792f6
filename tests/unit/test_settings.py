"""YAML and JSON lose nothing on the way in, and end in one message where they cannot be read."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from her2.config import load_config
from her2.core.errors import UserError
from her2.core.files import parse_json
from her2.core.settings import MAX_YAML_BYTES, parse_yaml, read_config, read_yaml

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: {a: 1}", {"a": 1, "b": {"a": 1}}),
        ("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
        ("a: !!str 1", {"a": "1"}),
        (
            "[0, -0, 0.50, 1_000, 0x10, 1e3, '010', 09, 1.0e+3]",
            [0, 0, 0.5, 1000, 16, "1e3", "010", "09", 1000.0],
        ),
        ("\ufeffa: 1", {"a": 1}),
        ("# nothing", None),
        ('{"a": [1, 2.5, "x", null, true]}', {"a": [1, 2.5, "x", None, True]}),
    ],
)
def test_good_yaml_is_what_the_library_reads(text: str, value: object) -> None:
    assert parse_yaml(text, source="c.yaml") == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 1\n", "line 3, column 1: the key 'a' is there twice, first in line 1"),
        ("a: {b: 1, c: 2, b: 3}", "line 1, column 17: the key 'b' is there twice"),
        ("- {a: {b: {c: 1, 'c': 1}}}", "the key 'c' is there twice"),
        ("x: &x {a: 1}\ny: {<<: *x, <<: *x}", "the key '<<' is there twice"),
        ("a: " + "[" * 3000 + "]" * 3000, "is nested more than 32 deep"),
        ("{a: " * 3000, "is nested more than 32 deep"),
        ("\n".join(" " * n + "a:" for n in range(300)), "is nested more than 32 deep"),
        (LAUGHS, "holds more than 20,000 values"),
        ("a: &a [*a]", r"\*a is a part of itself"),
        ("a: &a {b: {c: *a}}", r"\*a is a part of itself"),
        ("a: *nowhere", "undefined alias 'nowhere'"),
        ("a: !!python/object/apply:os.system [x]", "the tag .*os.system' has no meaning here"),
        ("a: !!binary aaaa", "the tag .*binary' has no meaning here"),
        ("a: !mine x", "the tag '!mine' has no meaning here"),
        ("a:\n\tb: 1", "Indent with spaces, not tabs"),
        ("a: @x", "line 1, column 4: .* in quotes"),
        ("a: 2024-13-45", "number or date that cannot be one .* Put texts in quotes"),
        ("a: " + "9" * 5000, "number or date that cannot be one"),
        ("a: 1\n---\na: 1", "expected a single document"),
        ("a: \x01", "Remove the character"),
        ("? [a, b]\n: 1", "a key must be a single text"),
        ("a: 1:30", "YAML reads 1:30 as another number, of base 60"),
        ("a: 1:30.5", "YAML reads 1:30.5 as another number"),
        ("a: [-010]", "line 1, column 5: YAML reads -010 as another number"),
        ("a: 'x", "unexpected end of stream"),
        ("a: [1, 2", "line 1, column 9"),
    ],
)
def test_bad_yaml_is_named_with_its_line_and_at_once(text: str, problem: str) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=rf"^c\.yaml: .*{problem}"):
        parse_yaml(text, source="c.yaml")
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: \xff", "is not UTF-8 text .* save it as UTF-8"),
        ("a: 1".encode("utf-16"), "is not UTF-8 text"),
        (b"#" * (MAX_YAML_BYTES + 1), "is larger than 128 KiB"),
    ],
)
def test_a_file_that_is_no_text_of_settings_is_named(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UserError, match=rf"c\.yaml: {problem}"):
        read_config(tmp_path / "c.yaml")


def test_settings_in_json_are_read_by_their_suffix(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{\n\t"a": 1}')  # YAML has no tabs
    assert read_config(path) == {"a": 1}
    path.write_text('{"a": 1, "a": 2}')
    with pytest.raises(UserError, match=r"c\.json: is not valid JSON: the key 'a' is there twice"):
        read_config(path)


def test_a_key_twice_in_a_config_is_no_problem_lost(
    tmp_path: Path, config_values: dict[str, Any]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config_values)[:-1] + ', "heads": {"mean": {}}}')
    with pytest.raises(UserError, match="the key 'heads' is there twice"):
        load_config(path)


@pytest.mark.parametrize("parse", [parse_json, lambda text: parse_json(text.encode())])
def test_good_json_is_what_the_library_reads(parse: Callable[[str], Any]) -> None:
    text = '{"a": [1, {"b": null, "c": "é"}], "b": {"a": 1}}'
    assert parse(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' is there twice"),
        ('[{"x": {"a": 1, "a": 1}}]', "the key 'a' is there twice"),
        ("[" * 100_000, "nested too deep"),
        ("{", "Expecting"),
        ("9" * 5000, "Exceeds the limit"),
    ],
)
def test_bad_json_is_a_value_error_like_any_other(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_json(text)


ROOT = Path(__file__).parents[2]
OURS = [ROOT / "config.yaml", *ROOT.glob("her2/**/*.yaml"), *ROOT.glob("workflow/**/*.yaml")]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_own_settings_and_lists_have_no_key_twice(path: Path) -> None:
    assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))
