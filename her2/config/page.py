"""Config: every key with its meaning, limits and default, as a page for people (docs/config.md)."""

from typing import Any

from her2.config.check import Config

_HEAD = """\
# The config

Made by `her2 config page` from the models that check a config; change those, not this page.
`her2 config check FILE` says what is wrong with a file and what would be legal.
[config.yaml](../config.yaml) is the demo's, ready to copy; editors read
[the schema](../workflow/schemas/config.schema.json).
"""


def page() -> str:
    """The page: a section of the config a heading, a key a row."""
    schema = Config.model_json_schema()
    sections = schema["$defs"]
    parts = [_HEAD, _section("The top level", schema)]
    for name, value in schema["properties"].items():
        titles = _sections_of(value)
        inner: dict[str, str] = {}
        for title in titles:
            section = sections[title]
            heading = f"`{name}`"
            if len(titles) > 1:  # one of several kinds: the heads
                kind = section["properties"]["head"]
                kinds = kind.get("enum", [kind.get("const")])
                heading += ": " + ", ".join(f"`{item}`" for item in kinds)
            parts.append(_section(heading, section, section.get("description", "")))
            for key, item in section["properties"].items():
                inner |= dict.fromkeys(_sections_of(item), key)
        for title, key in inner.items():
            section = sections[title]
            parts.append(_section(f"`{key}` of `{name}`", section, section.get("description", "")))
    return "\n".join(parts)


def _sections_of(value: dict[str, Any]) -> list[str]:
    """The sections that a key's value (or each value of its mapping) may be."""
    if "$ref" in value:
        return [value["$ref"].rsplit("/", 1)[1]]
    for inner in value.get("patternProperties", {}).values():
        return _sections_of(inner)
    return [name for part in value.get("anyOf", []) for name in _sections_of(part)]


def _section(title: str, schema: dict[str, Any], text: str = "") -> str:
    required = schema.get("required", [])
    lines = [f"## {title}", ""]
    if text:
        lines += [text, ""]
    lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for key, value in schema["properties"].items():
        if key == "head" and "const" in value:
            continue
        default = "required" if key in required else _default(value)
        meaning = value.get("description", "")
        cells = (f"`{key}`", _kind(value), default, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _default(value: dict[str, Any]) -> str:
    if "default" not in value or value["default"] is None:
        return "-"
    if isinstance(value["default"], dict):
        return "see below"
    return f"`{_shown(value['default'])}`"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind(value: dict[str, Any]) -> str:
    """`number, 0 to 1`, `one of a, b`, `a mapping of names`..."""
    if "$ref" in value:
        return "a section"
    if "enum" in value:
        return "one of " + ", ".join(f"`{_shown(item)}`" for item in value["enum"])
    if "const" in value:
        return f"`{_shown(value['const'])}`"
    if "anyOf" in value:
        kinds = [_kind(part) for part in value["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if value.get("type") == "array":
        items = value.get("items", {})
        return f"a list of: {_kind(items)}" if items else "a list"
    if value.get("type") == "object":
        return "a mapping, name to section" if _sections_of(value) else "a mapping"
    names = {"number": "number", "integer": "whole number", "boolean": "true or false"}
    kind = names.get(value.get("type", ""), "path" if value.get("format") == "path" else "text")
    return kind + _limits(value)


def _limits(value: dict[str, Any]) -> str:
    signs = (
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("exclusiveMaximum", "<"),
    )
    found = [f"{sign} {value[key]:.10g}" for key, sign in signs if key in value]
    return f", {' and '.join(found)}" if found else ""
