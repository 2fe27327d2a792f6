"""`bundle.json` as bytes: written with its digest, and read only if all of it is as it was."""

from typing import Any

from pydantic import ValidationError

from her2 import __version__
from her2.core.errors import UserError, first_line, problem_list
from her2.core.files import canonical_json, digest, parse_json
from her2.frozen.bundle.schema import (
    SCHEMA_NAME,
    SCHEMA_VERSION,
    Body,
    Contents,
    FileFacts,
)


def sealed(body: Body, files: dict[str, FileFacts]) -> Contents:
    """Return the contents with their digest."""
    values = {
        **body.values(),
        "files": {name: item.model_dump(mode="json") for name, item in files.items()},
    }
    return Contents.model_validate({**values, "digest": digest(values)})


def to_bytes(contents: Contents) -> bytes:
    """Return `bundle.json`: equal contents give equal bytes."""
    return (canonical_json(contents.values()) + "\n").encode()


def parse_contents(content: bytes, where: str) -> Contents:
    """Parse `bundle.json`.

    Args:
        content: its bytes.
        where: the bundle, for errors.

    Raises:
        UserError: it is no JSON, has a key twice or a number that is not finite, is of another
            schema version, was edited, or does not describe a bundle. All problems are named.
    """
    place = f"{where}: its {SCHEMA_NAME}"
    try:
        values = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} cannot be read ({first_line(error)}). Copy it again.") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise UserError(f"{place} has no schema_version, so it is none of a her2 bundle.")
    if version != SCHEMA_VERSION:
        raise UserError(_other_version(values, version, where))
    stated = values.pop("digest", None)
    try:
        own = digest(values)
    except ValueError:
        raise UserError(f"{place} has a number that is not finite. Copy it again.") from None
    if stated != own:
        raise UserError(
            f"{place} does not match its digest, so it was edited or damaged: it states "
            f"{_shown(stated)} and has {own}. Copy it again from where it was made."
        )
    try:
        return Contents.model_validate({**values, "digest": own})
    except ValidationError as error:
        raise problem_list(
            f"{place} does not describe a bundle",
            problems_in(error),
        ) from None


def problems_in(error: ValidationError) -> list[str]:
    """Return the key and what is wrong with it, for each problem."""
    return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]


def _other_version(values: dict[str, Any], version: int, where: str) -> str:
    software = values.get("software")
    maker = software.get("her2") if isinstance(software, dict) else None
    by = f", of her2 {_shown(maker)}" if isinstance(maker, str) else ""
    use = f"her2 {_shown(maker)}" if isinstance(maker, str) else "the version of her2 that made it"
    return (
        f"{where}: is a bundle of schema version {version}{by}, and her2 {__version__} reads "
        f"version {SCHEMA_VERSION}. Use {use}, or have the bundle made again with this version."
    )


def _shown(value: Any) -> str:
    """Return a text of somebody else for an error, short and without control characters."""
    return repr(value)[1:-1][:80] if isinstance(value, str) else "none"
