"""Configs that nobody would write: each is read, or refused by name, and quickly."""

import copy
import datetime
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from her2.config import KEEP_ORDER, Config, load_config, parse_config
from her2.config.names import chunks
from her2.core.errors import UserError
from tests.peak import peak_megabytes

ROOT = Path(__file__).parents[2]
SECONDS, MEGABYTES = 2.0, 500

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 10**9, 10**10, 10**40, -(10**10), 2**63, 0.0, -0.0, 0.5),
    *(1e-300, 1e300, float("nan"), float("inf"), float("-inf"), 10**4000, "", " ", "a", "0"),
    *("1e-3", "true", "yes", "~", "~/x", "~nobody-9/x", "$NOT_SET_HERE/x", "${HOME}", "$$", "a$"),
    *("x" * 300, "x" * 5000, "r{x}", "<a>", "a/{b}/c", "../..", "/", "//", ".", "-x", "a\nb"),
    *("\x00", "\ud800", "é", "\u202e", "\U0001f600", "s3://bucket/x", "nul", "a.csv", "x."),
    *("comparison.csv", "x.as-published", "timm/resnet18", "catalogue", "pretrain", "random"),
    *(
        "checkpoint",
        "published",
        "abmil",
        [],
        {},
        [[]],
        [{}],
        {"": 1},
        {"a": {}},
        {1: 2},
        {None: 3},
    ),
    *(
        {"x y": []},
        {(1, 2): 3},
        {None: 3},
        [None],
        [1, "a"],
        ["year"],
        [True, 0, 0],
        [0.5, 0.5, 0.5],
    ),
    *([["0", ["0"]], ["1+", ["1+"]]], [[1, 2], [3, 4]], b"bytes", {1, 2}, (1, 2)),
    *(datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1)),
]
ODD.append({"a": ODD[:20]})
KEYS = ["heads", "search", "options", "head", "source", "", "x.y", "{x}", 0, None, True, "a" * 500]
SNIPPETS = [
    *(
        "\t",
        "!!python/object/apply:os.system [echo]",
        "&a [*a]",
        "*b",
        "<<: *x",
        "{",
        "[",
        "]",
        "}",
    ),
    *(
        ": ",
        "- ",
        "'",
        '"',
        "|\n",
        "%YAML 9.9\n",
        "---\n",
        "...\n",
        "@",
        "`",
        "\x07",
        "\ufeff",
        "? ",
    ),
    *("!!binary x", "2024-99-99", "0x", "1:99:99", "1_000", ".inf", ".nan", "=", "[" * 3000),
    *("{a: " * 500, "9" * 5000, "&x " + "y" * 2000, "\n" * 500, "#", "é", "\u2028", "\x85"),
    *("!!set {a, b}", "!!omap [a: 1]", "!<x> y", "2024-01-01", "no", "off"),
]


def rich() -> dict[str, Any]:
    """A config that has every section, and options of several kinds."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    values["heads"] |= {"clam_sb": {}, "second": {"head": "mean", "dropout": 0.1}}
    values["heads"]["searched"] = {
        "head": "abmil",
        "search": {"trials": 2, "options": {"dropout": [0.1, 0.2], "gated": [True, False]}},
    }
    values["encoders"]["own"] = {
        "source": "checkpoint", "checkpoint": "w.pt", "model": "timm/resnet18", "domain": "he",
        "mpp": 0.5, "size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
    }  # fmt: skip
    values["encoders"]["known"] = {"source": "catalogue", "model": "uni"}
    values["evaluation"] |= {
        "groupings": {"low vs high": {"negative": ["0", "1+"], "positive": ["2+", "3+"]}},
        "prevalence": {"low vs high": 0.2}, "subgroups": ["age"], "covariates": ["grade"],
    }  # fmt: skip
    values["embedding"] = {"scratch": "$TMPDIR", "batch_size": 8}
    values["cohort"] |= {"tissue_masks": "masks", "mask_classes": ["tumour"]}
    return values


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a tree."""
    items: Any = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else items:
        yield (*above, key)
        yield from places(item, (*above, key))


def changed(values: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with some values replaced, moved, removed, renamed or added."""
    result = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        ways = list(places(result))
        *above, last = rng.choice(ways)
        parent: Any = result
        for key in above:
            parent = parent[key]
        match rng.randrange(6):
            case 0 | 1 | 2:
                parent[last] = copy.deepcopy(rng.choice(ODD))
            case 3 if isinstance(parent, dict):
                parent[rng.choice(KEYS)] = parent.pop(last)
            case 4:
                other: Any = result
                for key in rng.choice(ways):
                    other = other[key]
                parent[last] = copy.deepcopy(other)
            case _ if isinstance(parent, dict):
                parent[rng.choice(KEYS)] = copy.deepcopy(rng.choice(ODD))
            case _:
                parent.append(copy.deepcopy(rng.choice(ODD)))
        if not result:
            break
    return result


def broken(text: str, rng: random.Random) -> bytes:
    """A file's text with lines repeated, snippets put in, bytes changed or its end cut off."""
    content = text.encode()
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(max(1, len(content)))
        lines = content.splitlines(keepends=True)
        match rng.randrange(5):
            case 0:
                line = rng.choice(lines) if lines else b""
                content = content.replace(line, line * 2, 1) if line else content
            case 1:
                snippet = rng.choice(SNIPPETS).encode()
                content = content[:at] + snippet + content[at:]
            case 2:
                content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
            case 3:
                content = content[:at]
            case _:
                content = content[:at] + content[at + rng.randrange(60) :]
    return content


def keys_of(schema: Any) -> set[str]:
    """Every key that a config can have."""
    if isinstance(schema, list):
        return {key for part in schema for key in keys_of(part)}
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", {})) | {k for v in schema.values() for k in keys_of(v)}


LEGAL = keys_of(Config.model_json_schema())


def check_refusal(error: UserError) -> None:
    """A refusal has a line of the file, or a legal key in each of its problems; and is no novel."""
    message = str(error)
    assert len(message) < 100_000
    assert "Traceback" not in message
    if "problem(s)" not in message:
        assert re.search(r"line \d+|position \d+|cannot be one|UTF-8|no settings|KiB", message), (
            message
        )
        return
    for problem in message.splitlines()[1:51]:
        assert set(re.findall(r"\w+", problem)) & LEGAL or re.search(
            "a key is a name|is no character", problem
        ), problem


def check_use(config: Config) -> None:
    """What is accepted can be planned, and comes out of a spec as it went in."""
    assert len(chunks(config.folds, config.training.seeds)) <= 20_000
    assert all(config.grids)
    text = config.model_dump_json(context=KEEP_ORDER)
    assert Config.model_validate_json(text) == config


def timed(read: Any, source: Any) -> bool:
    """Read one config and check what became of it. Return whether it was accepted."""
    began = time.process_time()
    try:
        config = read(source)
    except UserError as error:
        check_refusal(error)
        config = None
    else:
        check_use(config)
    assert time.process_time() - began < SECONDS
    return config is not None


def campaign(seed: int, trees: int, texts: int, folder: Path) -> tuple[int, int]:
    """Return how many configs were accepted, and how many were tried."""
    rng, path = random.Random(seed), folder / "config.yaml"
    values, text = rich(), (ROOT / "config.yaml").read_text()
    accepted = sum(timed(parse_config, changed(values, rng)) for _ in range(trees))
    for _ in range(texts):
        path.write_bytes(broken(text, rng))
        accepted += timed(load_config, path)
    return accepted, trees + texts


def test_the_config_that_is_changed_is_itself_legal() -> None:
    check_use(parse_config(rich()))


def test_no_config_ends_in_a_traceback(tmp_path: Path) -> None:
    before = peak_megabytes(anew=True)
    accepted, tried = campaign(2411, 300, 40, tmp_path)
    assert 0.05 < accepted / tried < 0.95
    assert peak_megabytes() - before < MEGABYTES


@pytest.mark.nightly
@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(4))
def test_no_config_of_many_ends_in_a_traceback(tmp_path: Path, seed: int) -> None:
    before = peak_megabytes(anew=True)
    campaign(seed, 4000, 600, tmp_path)
    assert peak_megabytes() - before < MEGABYTES
