"""A file that cannot be read is an error about the file, wherever the package reads one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from her2.core.errors import SlideError, UserError
from her2.core.reading import path_problem
from her2.core.sheets import read_sheet
from her2.pretraining.patches import read_rgb
from her2.slides.annotations import read_regions
from her2.slides.backends import open_slide
from her2.slides.masks import read_mask

ROOT = Path(__file__).parents[2]

READERS = {
    "read_parquet", "scan_parquet", "read_schema", "ParquetFile", "read_table", "safe_open",
    "load_file", "torch.load", "h5py.File", "ZipFile", "gzip.open", "tarfile.open", "zarr.open",
    "np.load",
}  # fmt: skip
"""Calls that parse a file."""
PARSERS = {"json.loads", "json.load", "parse_json", "safe_load"}
"""Calls that parse a text, which matter where the text is read in the same expression."""

GUARDS = {"_damage", "store_archive"}
"""Context managers that turn any error into one about the file."""
GUARDED_BY_ITS_CALLER = {
    ("pipeline/status.py", "_tiles_in"),  # `_tiles_of` counts none
    ("core/tables.py", "read_result"),  # `_read` calls what it is given in a `try`
    ("core/tables.py", "found"),
    ("training/checkpoint.py", "_restore"),  # `load` starts over
    ("core/hdf5.py", "unpack"),  # says what it raises; read_pcam names the file
    ("core/hdf5.py", "open_checked"),  # says what it raises; read_given names the file
    ("exchange/content/hdf5_file.py", "blocks"),  # read_given names the file
    ("pretraining/pcam.py", "sets"),  # read in the `try` of __call__
}
OURS = {("report/sections/paper/references.py", "known_works")}
"""Files of the package itself."""


def full_name(call: ast.Call) -> str:
    return ast.unparse(call.func)


def reads_a_file(call: ast.Call) -> bool:
    name = full_name(call)
    last = name.rpartition(".")[2]
    if name.startswith(("pl.", "pa.parquet.", "pyarrow.")) and last in READERS:
        return True
    if last in READERS - {"read_table"} or name in READERS - {"read_table"}:
        modes = [one.value for one in call.args[1:] if isinstance(one, ast.Constant)]
        return "w" not in modes
    if last in {one.rpartition(".")[2] for one in PARSERS}:
        return any(word in ast.unparse(call) for word in (".read_text(", ".read_bytes("))
    return False


def unguarded(tree: ast.AST) -> Iterator[tuple[str, int, str]]:
    """Yield (function, line, call) for each reader outside of a `try` with handlers."""

    def visit(node: ast.AST, function: str, guarded: bool) -> Iterator[tuple[str, int, str]]:
        if isinstance(node, ast.Call) and not guarded and reads_a_file(node):
            yield function, node.lineno, full_name(node)
        if isinstance(node, ast.FunctionDef):
            function, guarded = node.name, False
        if isinstance(node, ast.With) and any(
            isinstance(item.context_expr, ast.Call) and full_name(item.context_expr) in GUARDS
            for item in node.items
        ):
            guarded = True
        if isinstance(node, ast.Try) and node.handlers:
            for statement in node.body:
                yield from visit(statement, function, True)
            rest: list[ast.AST] = [*node.handlers, *node.orelse, *node.finalbody]
        else:
            rest = list(ast.iter_child_nodes(node))
        for part in rest:
            yield from visit(part, function, guarded)

    yield from visit(tree, "", False)


def test_every_reader_of_files_stands_in_a_try_or_a_guard():
    """Whether what is caught and raised there is right, the tests of each reader say."""
    found = [
        f"her2/{name}:{line}: {call} in {function or 'the module'}"
        for path in sorted((ROOT / "her2").rglob("*.py"))
        for name in [path.relative_to(ROOT / "her2").as_posix()]
        for function, line, call in unguarded(ast.parse(path.read_text(encoding="utf-8")))
        if (name, function) not in GUARDED_BY_ITS_CALLER | OURS
    ]
    assert not found, (
        "an error of these reaches a user as a traceback without the file's name; call read_json "
        "or read_result, or catch the library's errors and raise a UserError:\n" + "\n".join(found)
    )


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("json.loads(path.read_text())", 1),
        ("json.loads(text)", 0),
        ("try:\n    torch.load(p)\nexcept OSError:\n    pass", 0),
        ("try:\n    pass\nexcept OSError:\n    torch.load(p)", 1),
        ("try:\n    torch.load(p)\nfinally:\n    pass", 1),
        ("try:\n    def f():\n        h5py.File(p)\nexcept OSError:\n    pass", 1),
        ("zipfile.ZipFile(p, 'w')", 0),
        ("pl.read_parquet(p)", 1),
    ],
)
def test_readers_outside_of_a_try_are_found(code, count):
    assert len(list(unguarded(ast.parse(code)))) == count


def test_the_exempt_still_exist():
    for name, function in GUARDED_BY_ITS_CALLER | OURS:
        tree = ast.parse((ROOT / "her2" / name).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function in names


ENTRANCES = {
    "slide.svs": open_slide,
    "slide.tif": open_slide,
    "slide.png": open_slide,
    "mask.png": lambda path: read_mask(path, (9, 9), size_px=(90, 90)),
    "mask.tif": lambda path: read_mask(path, (9, 9), size_px=(90, 90)),
    "regions.geojson": read_regions,
    "regions.xml": read_regions,
    "slides.csv": lambda path: read_sheet(path, ("slide_id",), key="cohort.slides"),
    "slides.parquet": lambda path: read_sheet(path, ("slide_id",), key="cohort.slides"),
    "patch.png": read_rgb,
    "looked-at-first": lambda path: refuse(path_problem(path)),
}


def refuse(problem: str | None) -> None:
    if problem is not None:
        raise UserError(problem)


@pytest.mark.parametrize("name", ENTRANCES)
def test_a_pointer_of_git_lfs_is_called_one_wherever_a_file_of_a_user_is_opened(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises((UserError, SlideError, ValueError), match="Git LFS pointer.*git lfs pull"):
        ENTRANCES[name](path)
