"""Read many broken copies of a file in one child process, and say what became of each.

    python -m tests.fuzz.harness MODULE FOLDER SEED COUNT

`MODULE` (of this package) has `cases(folder) -> {name: path}`, which writes the whole files, and
`read(path)`, which reads one as the package does. The reading runs under `survive`, like every
command, so a crash of a library is an outcome too. Prints a JSON list of `Outcome`.
"""

import json
import logging
import resource
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from her2.core.crashes import reading, survive
from her2.core.errors import SlideError, TileError, UserError

MEMORY_BYTES = 6 << 30
"""Of addresses, more than the libraries need on their own by 4 GiB."""
SECONDS = 20.0
"""Of CPU for one file."""
NUMBERS = (0, 1, 2, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


@dataclass(frozen=True)
class Outcome:
    """What became of one file: `read`, `refused` or `fault`, with the message or traceback."""

    name: str
    what: str
    words: str
    seconds: float


def outcomes(module: str, folder: Path, *, seed: int, count: int) -> list[Outcome]:
    """Run the harness and return its outcomes, at least one per file.

    Raises:
        AssertionError: the process died, or took too much memory.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.harness", module, folder, str(seed), str(count)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [Outcome(**row) for row in json.loads(done.stdout)]


def check(found: list[Outcome]) -> None:
    """Raise an AssertionError with the faults, and unless some files were read, others refused."""
    faults = [one for one in found if one.what == "fault" or one.seconds > SECONDS]
    shown = "\n".join(f"{one.name} ({one.seconds:.1f} s): {one.words}" for one in faults[:5])
    assert not faults, f"{len(faults)} of {len(found)} files:\n{shown}"
    assert {one.what for one in found} == {"read", "refused"}


# Breaking files


def broken(content: bytes, generator: np.random.Generator) -> bytes:
    """Return a broken copy: cut short, with wrong bits, blocks or TIFF tags."""
    kinds: list[Callable[[bytearray, np.random.Generator], bytearray]] = [
        _cut,
        _flip,
        _block,
        _move,
    ]
    if content[:4] in (b"II*\0", b"MM\0*"):
        kinds += [_tag] * 4
    changed = bytearray(content)
    for _ in range(int(generator.integers(1, 4))):
        kind = kinds[generator.integers(len(kinds))]
        changed = kind(changed, generator)
        if not changed:
            break
    return bytes(changed)


def _cut(content: bytearray, generator: np.random.Generator) -> bytearray:
    return content[: generator.integers(len(content))]


def _flip(content: bytearray, generator: np.random.Generator) -> bytearray:
    reach = len(content) if generator.random() < 0.5 else min(len(content), 512)
    for place in generator.integers(reach, size=generator.integers(1, 9)):
        content[place] ^= 1 << int(generator.integers(8))
    return content


def _block(content: bytearray, generator: np.random.Generator) -> bytearray:
    start, size = generator.integers(len(content)), int(generator.integers(1, 65))
    filler = [bytes(size), b"\xff" * size, generator.bytes(size)][generator.integers(3)]
    content[start : start + size] = filler
    return content


def _move(content: bytearray, generator: np.random.Generator) -> bytearray:
    start, to = generator.integers(len(content), size=2)
    part = content[start : start + generator.integers(1, 257)]
    content[to:to] = part
    return content


def _tag(content: bytearray, generator: np.random.Generator) -> bytearray:
    """Change the type, the count or the value of a tag in one of a classic TIFF's directories."""
    order = "<" if content[:2] == b"II" else ">"
    try:
        (place,) = struct.unpack_from(f"{order}I", content, 4)
        for _ in range(int(generator.integers(3))):
            (number,) = struct.unpack_from(f"{order}H", content, place)
            (after,) = struct.unpack_from(f"{order}I", content, place + 2 + 12 * number)
            place = after or place
        (number,) = struct.unpack_from(f"{order}H", content, place)
        entry = place + 2 + 12 * int(generator.integers(max(1, number)))
        value = int(generator.choice(NUMBERS))
        match generator.integers(4):
            case 0:
                struct.pack_into(f"{order}H", content, entry, int(generator.integers(254, 340)))
            case 1:
                struct.pack_into(f"{order}H", content, entry + 2, int(generator.integers(20)))
            case 2:
                struct.pack_into(f"{order}I", content, entry + 4, value)
            case _:
                struct.pack_into(f"{order}I", content, entry + 8, value)
    except struct.error:
        pass
    return content


# The child process


def _run() -> None:
    name, folder, seed, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    logging.disable()
    module = import_module(f"tests.fuzz.{name}")
    (folder / "whole").mkdir(exist_ok=True)
    cases: dict[str, Path] = module.cases(folder / "whole")
    spoil = getattr(module, "spoiled", broken)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    found = [_outcome(key, path, module.read) for key, path in cases.items()]
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        key = sorted(cases)[generator.integers(len(cases))]
        whole = cases[key]
        path = folder / f"{whole.stem}-{number}{whole.suffix}"
        path.write_bytes(spoil(whole.read_bytes(), generator))
        found.append(_outcome(f"{key} {seed}-{number}", path, module.read))
        path.unlink()
    print(json.dumps([asdict(one) for one in found]))


def _outcome(name: str, path: Path, read: Callable[[Path], object]) -> Outcome:
    begin = time.process_time()
    try:
        with reading(name):
            read(path)
    except (SlideError, TileError, UserError) as error:
        unexpected = error.__cause__ is not None and not isinstance(error.__cause__, OSError)
        what = "fault" if isinstance(error, SlideError) and unexpected else "refused"
        words = traceback.format_exc() if what == "fault" else str(error)
    except Exception:
        what, words = "fault", traceback.format_exc()
    else:
        what, words = "read", ""
    return Outcome(name, what, words, time.process_time() - begin)


if __name__ == "__main__":
    survive(_run)
