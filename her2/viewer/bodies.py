"""`her2 view`: the JSON that a page sends."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from her2.core.files import parse_json


async def read_object(request: Request, *, most_bytes: int) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    Raises:
        HTTPException: it is too large (413), or is none (400).
    """
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most_bytes:
            raise HTTPException(413, f"This is more than {most_bytes >> 10:,} KiB, the most here.")
    try:
        found = parse_json(bytes(content))
    except ValueError as error:
        raise HTTPException(400, f"What was sent is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise HTTPException(400, "What was sent is no JSON object.")
    return found
