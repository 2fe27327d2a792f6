"""Config: the problems that pydantic finds, said as `key: what is wrong; what is legal`."""

import difflib
import reprlib
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any, get_args

from her2.config.given import ENCODERS
from her2.config.heads import HEADS
from her2.config.problems import Problems
from her2.core.section import NAME_PATTERN, Section
from her2.heads import SearchSection

_NOT_OF_THE_KIND = {
    "int": "is not a whole number",
    "float": "is not a number",
    "bool": "is neither true nor false",
    "string": "is not text",
    "path": "is not a path; write it as text, in quotes where needed",
    "tuple": "is not a list; write [{value}]",
    "list": "is not a list; write [{value}]",
    "dict": "is not a mapping; write lines of `name: value` below the key",
    "model": "is not a section; write lines of `key: value` below it",
    "mapping": "is not a mapping; write lines of `name: value` below the key",
}
"""How the name of pydantic's error begins -> our words."""
_MARKS = ("[key]", "constrained-str", "constrained-int", "constrained-float")
"""Parts of pydantic's locations that are none of the config's."""


_MOST, _LONGEST = 500, 1000
"""Errors that are put into words, of a file of nothing else; and characters of each."""


def problems(items: list[dict[str, Any]], root: type[Section]) -> list[str]:
    """Return what pydantic's errors say of a config, whose model is `root`, each once.

    Of a great number only the first are put into words.
    """
    found: dict[str, list[str]] = {}
    kinds: dict[str, set[str]] = {}
    for item in items[:_MOST]:
        for key, said in _keyed(item, root):
            if said not in found.setdefault(key, []):
                found[key].append(said)
            kinds.setdefault(key, set()).add(_kind(item))
    for key, of_key in kinds.items():
        if of_key <= _NOT_OF_THE_KIND.keys():  # each branch of a union wants another kind
            found[key] = found[key][-1:]
    lines = [f"{key}: {one}" if key else one for key, said in found.items() for one in said]
    return [line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..." for line in lines]


def _kind(item: dict[str, Any]) -> str:
    return str(item["type"]).split("_")[0]


def _keyed(item: dict[str, Any], root: type[Section]) -> list[tuple[str, str]]:
    """Return the problems of one error, each after its key; "" where the words name it."""
    location = [str(part) for part in item["loc"] if part not in _MARKS]
    if "search" in location[:-1] and location[-1] == "bool":  # a branch of a searched value's kinds
        location.pop()
    head = location.pop(2) if location[:1] == ["heads"] and len(location) > 2 else ""
    of_kind = location[:1] == ["encoders"] and len(location) > 2
    encoder = location.pop(2) if of_kind and location[2] in ENCODERS else ""
    key = ".".join(part if len(part) <= 130 else f"{part[:40]}..." for part in location)
    error = item.get("ctx", {}).get("error")
    if isinstance(error, Problems):
        return [(".".join(filter(None, (key, below))), said) for below, said in error.found]
    if item["type"] == "value_error":
        return [(key, str(error))]
    chosen: type[Section] | None = ENCODERS[encoder] if encoder else None
    if head:
        chosen = HEADS[head]
    return [(key or "the config", _said(item, location, chosen, root))]


def _said(
    item: dict[str, Any],
    location: list[str],
    chosen: type[Section] | None,
    root: type[Section],
) -> str:
    value, kind = item["input"], item["type"]
    match kind:
        case "extra_forbidden":
            legal = _legal_keys(location[:-1], chosen, root)
            return f"unknown key; {_near(location[-1], legal)}the legal keys are {', '.join(legal)}"
        case "union_tag_invalid" | "union_tag_not_found":
            named = value.get("head") if isinstance(value, Mapping) else value
            near = _near(str(named or location[-1]), HEADS)
            return f"unknown or missing head; {near}set `head:` to one of {', '.join(HEADS)}"
        case "invalid_key":
            return "a key is a name; write it as text"
        case "missing":
            return "missing, and it has no default"
        case "string_pattern_mismatch" if item["ctx"]["pattern"] == NAME_PATTERN:
            return (
                f"{shown(value)} is not a legal name; use letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit"
            )
        case "string_pattern_mismatch":
            return f"{shown(value)} does not match {item['ctx']['pattern']}"
        case "string_type" if isinstance(value, bool):
            return "YAML reads yes, no, on, off, true and false as no text; put it in quotes"
        case "path_type" if value is None:
            return "is empty (YAML reads a bare ~ so, too); name a file or folder, in quotes"
        case "string_type" if value is not None and not isinstance(value, Mapping | list | tuple):
            return f"YAML does not read {shown(value)} as text; put it in quotes"
        case "literal_error" if location[:1] == ["encoders"] and location[-1] == "source":
            return (
                f"{shown(value)}: must be {item['ctx']['expected'].replace(' or ', ', ')} or "
                "'features'"
            )
    words = _NOT_OF_THE_KIND.get(_kind(item))
    if words and kind.endswith(("_type", "_parsing", "_size", "_from_float")):
        return f"{shown(value)} {words.format(value=shown(value).strip(chr(39)))}"
    said = item["msg"].replace("Input should be", "must be").replace("should have", "must have")
    return f"{shown(value)}: {said[:1].lower()}{said[1:]}"


def shown(value: Any) -> str:
    """Return a value as an error quotes it: short, and as YAML writes true, false and null."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, int) and abs(value) >= 10**40:  # Python prints no more than 4,300 digits
        return "a number of more than 40 digits"
    return f"{value!r}" if isinstance(value, str) and len(value) <= 100 else reprlib.repr(value)


def _near(name: str, legal: Any) -> str:
    # Letters in another order are the likeliest mistake: `modle` is `model`, not `module`.
    found = [key for key in legal if len(key) == len(name) and sorted(key) == sorted(name)]
    found = found or difflib.get_close_matches(name[:100], legal, n=1)
    return f"did you mean {found[0]!r}? " if found else ""


def _legal_keys(parents: list[str], chosen: type[Section] | None, root: type[Section]) -> list[str]:
    """Return the legal keys of the section at `parents` (names in a mapping are skipped).

    `chosen` is the kind of head or encoder that the section is.
    """
    if chosen is not None:
        return sorted((SearchSection if "search" in parents else chosen).model_fields)
    model = root
    for part in parents:
        field = model.model_fields.get(part)
        found = [] if field is None else list(_sections_in(field.annotation))
        model = found[-1] if found else model
    return sorted(model.model_fields)


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections that a field of this type may contain."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
