"""Before every stage: settings (YAML), read so that nothing written there is silently lost.

The library keeps the last value of a key that is there twice, and fails with errors of its own on a
file that is nested without end. `her2.core.files` reads JSON.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from her2.core.errors import UserError
from her2.core.files import parse_json
from her2.core.reading import path_problem

MAX_YAML_BYTES = 128 * 1024
"""A config of fifty encoders has 10 kB; this much is read in a second."""
_MAX_DEPTH = 32
_MAX_NODES = 20_000
_NOT_DECIMAL = re.compile(r"[-+]?(0[0-7_]+$|.*:)")
_TEXT = "tag:yaml.org,2002:str"
_FIXES = {
    yaml.scanner.ScannerError: " Indent with spaces, not tabs, and put texts with `: `, `#`, `{` "
    "or `@` in quotes.",
    yaml.reader.ReaderError: " Remove the character, or save the file as UTF-8.",
}


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key that is there twice, tags, and what grows when it is read.

    `sizes` are the numbers of values below each node and its depth, with aliases counted as often
    as they are used: ten lines of aliases can stand for a billion values.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0
        self.sizes: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in (None, "!", _TEXT):
            raise self._refusal(f"the tag {event.tag!r} has no meaning here; delete it", event)
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self.sizes:
                raise self._refusal(f"*{event.anchor} is a part of itself", event)
            return node
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self._refusal(f"is nested more than {_MAX_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None:
            self._measure(node, event)
        return node

    def compose_scalar_node(self, anchor: Any) -> ScalarNode:
        node: ScalarNode = super().compose_scalar_node(anchor)
        if node.tag.endswith((":int", ":float")) and _NOT_DECIMAL.match(node.value):
            raise self._refusal(
                f"YAML reads {node.value} as another number, of base 60 (with a colon) or 8 (with "
                "a leading zero); write it without, or in quotes if it is a text",
                node,
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node: MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise self._refusal("a key must be a single text", key)
            name = key.tag, key.value
            if name in lines:
                raise self._refusal(
                    f"the key {key.value!r} is there twice, first in line {lines[name]}; "
                    "delete one of them",
                    key,
                )
            lines[name] = key.start_mark.line + 1
        return node

    def _measure(self, node: Node, event: Any) -> None:
        below: list[Node] = []
        if isinstance(node, MappingNode):
            below = [part for pair in node.value for part in pair]
        elif not isinstance(node, ScalarNode):
            below = node.value
        sizes = [self.sizes[id(part)] for part in below]
        total = 1 + sum(size for size, _ in sizes)
        depth = 1 + max((depth for _, depth in sizes), default=0)
        if total > _MAX_NODES or depth > _MAX_DEPTH:
            raise self._refusal(
                f"holds more than {_MAX_NODES:,} values, or is nested more than {_MAX_DEPTH} deep "
                "(an alias counts each time)",
                event,
            )
        self.sizes[id(node)] = total, depth

    @staticmethod
    def _refusal(problem: str, at: Any) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def read_yaml(path: Path) -> Any:
    """Read a YAML file strictly.

    Raises:
        UserError: the file cannot be read, is too large or not YAML, holds a key twice, tags or
            values without end; with the line, and the fix.
    """
    return parse_yaml(_text(path, MAX_YAML_BYTES), source=str(path))


def parse_yaml(text: str, *, source: str) -> Any:
    """Parse a text of YAML, as `read_yaml` does; `source` begins the errors."""
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        said = ", ".join(part for part in (error.context, error.problem) if part)
        fix = _FIXES.get(type(error), "")
        raise UserError(f"{source}: is not valid YAML: {where}{said}.{fix}") from None
    except (yaml.YAMLError, RecursionError) as error:
        fix = _FIXES.get(type(error), "")
        said = " ".join(str(error).split())
        raise UserError(f"{source}: is not valid YAML: {said}.{fix}") from None
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        # The library's constructors of numbers and dates: 2024-13-45, a number of 5,000 digits.
        raise UserError(
            f"{source}: holds a number or date that cannot be one ({str(error).split(':')[0]}). "
            "Put texts in quotes."
        ) from None
    finally:
        if loader is not None:
            loader.dispose()


def read_config(path: Path) -> Any:
    """Read a file of settings, YAML or (by its suffix) JSON, as strictly as `read_yaml`.

    Raises:
        UserError: the file cannot be read, or is not one.
    """
    if path.suffix.lower() != ".json":
        return read_yaml(path)
    try:
        return parse_json(_text(path, MAX_YAML_BYTES))
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON: {error}.") from None


def _text(path: Path, limit: int) -> str:
    if problem := path_problem(path):
        raise UserError(f"{path}: {problem}. Check the path.")
    try:
        with path.open("rb") as stream:  # not the size beforehand: /proc and pipes have none
            content = stream.read(limit + 1)
        if len(content) > limit:
            raise UserError(f"{path}: is larger than {limit // 1024} KiB; is it the right file?")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8.") from None
