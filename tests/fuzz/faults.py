"""Faults of files, drawn from a seed, and what every fuzzer asserts."""

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from her2.core.errors import UserError
from tests.peak import peak_megabytes

CPU_SECONDS, SECONDS, MEGABYTES = 5.0, 60.0, 600.0
"""Most that reading one damaged file may take; more time than CPU time, for a loaded machine."""


LONG = [pytest.mark.nightly, pytest.mark.campaign]


def campaign(short: int, nightly: int) -> list:
    """Return the seeds of a fuzzer: few in `make test`, many at night."""
    return [
        pytest.param(range(short), id="short"),
        pytest.param(range(short, nightly), id="long", marks=LONG),
    ]


def damaged(content: bytes, seed: int, *, keep: int = 0) -> bytes:
    """Return content with a fault that disks, transfers and people make.

    Truncation, flipped bits, a block of zeros or of noise, a block that moved, bytes inserted or
    lost, or a number that became huge; the first `keep` bytes stay.
    """
    generator = np.random.default_rng(seed)
    head, body = content[:keep], bytearray(content[keep:])
    size = len(body)
    start = int(generator.integers(size))
    stop = min(size, start + int(generator.integers(1, max(2, size // 4))))
    match int(generator.integers(8)):
        case 0:
            del body[start:]
        case 1:
            for place in generator.integers(size, size=generator.integers(1, 9)):
                body[place] ^= 1 << int(generator.integers(8))
        case 2:
            body[start:stop] = bytes(stop - start)
        case 3:
            body[start:stop] = generator.bytes(stop - start)
        case 4:
            other = int(generator.integers(size))
            body[start:stop] = (body[other:] + body)[: stop - start]
        case 5:
            body[start:start] = generator.bytes(int(generator.integers(1, 64)))
        case 6:
            del body[start:stop]
        case _:
            value = int(generator.choice([0xFF, 0x7F, 0x00, 0x10]))
            width = int(generator.choice([1, 2, 4, 8]))
            body[start : start + width] = bytes([value]) * width
    return head + bytes(body)


def read_or_refused(
    read: Callable[[Path], object], path: Path, what: str, *, or_says: str | None = None
) -> bool:
    """Read a file; assert that it is refused by name if at all, in bounded time and memory.

    Where a fault leaves a legal file, the refusal may say `or_says` in place of the name.

    Returns:
        True if it was read.
    """
    begin, busy, before = time.perf_counter(), time.process_time(), peak_megabytes(anew=True)
    try:
        read(path)
        refusal = None
    except UserError as error:
        refusal = str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    seconds, grown = time.perf_counter() - begin, peak_megabytes() - before
    assert seconds < SECONDS, f"{what}: took {seconds:.1f} s"
    assert time.process_time() - busy < CPU_SECONDS, f"{what}: took {seconds:.1f} s"
    assert grown < MEGABYTES, f"{what}: took {grown:.0f} MB"
    if refusal is not None:
        assert path.stem in refusal or (or_says and or_says in refusal), (
            f"{what}: refused without its name: {refusal}"
        )
        assert len(refusal) < 4000, f"{what}: {len(refusal)} characters"
    return refusal is None


_STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**12, 1e308, 0.5, "", "x", "object", [], {}, [10**9, 10**9],
)  # fmt: skip


def altered(value: Any, seed: int) -> Any:
    """Return a JSON value with one part lost, renamed or replaced by another value or type."""
    generator = np.random.default_rng(seed)
    found = copy.deepcopy(value)
    places = list(_places(found))
    container, key = places[int(generator.integers(len(places)))]
    match int(generator.integers(4)):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[f"{key}x"] = container.pop(key)
        case _:
            container[key] = _STRANGE[int(generator.integers(len(_STRANGE)))]
    return found


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) for everything in a JSON value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
