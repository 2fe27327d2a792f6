"""Feature files of other programs: which library reads a file, by its first bytes."""

from pathlib import Path

from her2.core.errors import first_line
from her2.core.reading import path_problem
from her2.exchange.content import FILE_BYTES, Content

_HDF5 = b"\x89HDF\r\n\x1a\n"
_NPY = b"\x93NUMPY"
_TORCH = (b"PK\x03\x04", b"\x80")
"""A zip, and a pickle, as torch wrote before 1.6."""


def open_content(path: Path) -> Content:
    """Look at the arrays of a file; the values are read later, and only those that are asked for.

    Raises:
        ValueError: it is no file that is known, damaged, or not what it declares; with the fix.
    """
    if (problem := path_problem(path, limit_bytes=FILE_BYTES)) is not None:
        raise ValueError(f"it {problem}")
    try:
        with path.open("rb") as stream:
            begin = stream.read(8)
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
    if begin.startswith(_HDF5):
        from her2.exchange.content.hdf5_file import read_hdf5

        try:
            return read_hdf5(path)
        except Exception as error:  # h5py raises any type of error on a damaged file
            raise ValueError(
                f"it is an HDF5 file that cannot be read ({first_line(error)}); copy it again, or "
                "wait until the program that writes it has finished"
            ) from None
    if begin.startswith(_NPY):
        from her2.exchange.content.npy_file import read_npy

        return read_npy(path)
    if begin.startswith(_TORCH):
        from her2.exchange.content.torch_file import read_torch

        return read_torch(path)
    what = f"begins with {begin!r}" if begin else "is empty"
    raise ValueError(
        f"it is neither an HDF5, a torch nor an npy file (it {what}); copy it again, or "
        "leave it out"
    )
