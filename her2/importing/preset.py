"""A preset of the workflow -> the config of one cohort, with the preset's comments.

The text is edited where the parser says that a value begins and ends. A preset is a config as any
other; whatever of it is not changed stays as it was written.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

import her2
from her2.core.errors import UserError
from her2.core.reading import path_problem

FOLDER = Path(her2.__file__).parents[1] / "workflow" / "presets"


def read_preset(name: str) -> str:
    """Return the text of a preset.

    Raises:
        UserError: it is not there, as where the package was installed without the workflow.
    """
    path = FOLDER / name
    if problem := path_problem(path):
        raise UserError(f"the preset {path}: {problem}. Use `her2` in the project's own folder.")
    return path.read_text(encoding="utf-8")


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """Return a config's text with other values of some keys, such as `cohort.root`.

    A key that the text has gets the value in place; one that it has not is added as the first of
    its section, which must be there. Comments stay.

    Raises:
        KeyError: there is no such section.
    """
    for key, value in values.items():
        text = _with_value(text, key.split("."), written_value(value))
    return text


def without_tasks(text: str, labels: Collection[str]) -> tuple[str, list[str]]:
    """Return a config's text in which the tasks of other label columns are comments.

    The second result names these tasks.
    """
    section = _find(_root(text), "tasks")
    assert isinstance(section, MappingNode)
    dropped = []
    for key, task in reversed(section.value):
        label = _find(task, "label")
        if isinstance(label, ScalarNode) and label.value not in labels:
            first, last = key.start_mark.line, text.count("\n", 0, _end(task, text))
            lines = text.split("\n")
            lines[first : last + 1] = [f"# {line}" for line in lines[first : last + 1]]
            lines[first:first] = [f"# {task_note(label.value)}"]
            text = "\n".join(lines)
            dropped.append(str(key.value))
    return text, dropped[::-1]


def task_note(label: str) -> str:
    """Return the comment above a task that the cohort has no labels for."""
    return f"No slide of this cohort has a label in the column {label!r}:"


def as_user_path(path: Path) -> str:
    """Return a path as it has to be written in a config or manifest.

    $ and ~ mean more there, and spaces around a cell nothing.
    """
    text = str(path).replace("$", "$$")
    return f"./{text}" if text.startswith("~") or text != text.lstrip() else text


def _with_value(text: str, names: list[str], written: str) -> str:
    node: Node = _root(text)
    for name in names[:-1]:
        found = _find(node, name)
        if not isinstance(found, MappingNode) or not found.value:
            raise KeyError(f"the preset has no section {name!r}")
        node = found
    value = _find(node, names[-1])
    if value is not None:
        start, end = value.start_mark.index, _end(value, text)
        space = " " if start == end else ""  # a key without a value
        return f"{text[:start]}{space}{written}{text[end:]}"
    assert isinstance(node, MappingNode)
    first = node.value[0][0].start_mark
    between = ", " if node.flow_style else f"\n{' ' * first.column}"
    return f"{text[: first.index]}{names[-1]}: {written}{between}{text[first.index :]}"


def written_value(value: Any) -> str:
    """Return a value as YAML in one line."""
    if isinstance(value, Path):
        value = as_user_path(value)
    # As an item of a list, since a text may need quotes within brackets that it needs nowhere else.
    text = yaml.safe_dump(
        [value], default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return str(text).strip()[1:-1]


def _root(text: str) -> Node:
    found = yaml.compose(text, Loader=yaml.SafeLoader)
    assert found is not None
    return found


def _find(node: Node, name: str) -> Node | None:
    pairs = node.value if isinstance(node, MappingNode) else ()
    return next((value for key, value in pairs if key.value == name), None)


def _end(node: Node, text: str) -> int:
    """Return where a value ends, without the comments that the parser counts to a block."""
    if isinstance(node, CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last, text)
    start, end = node.start_mark.index, node.end_mark.index
    return start + len(text[start:end].rstrip())
