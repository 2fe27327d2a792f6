"""Paths mean the same under every key, and what is there is looked at before it is opened."""

import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

from her2.cohort.reading import read_cohort
from her2.config import Config, GivenSection, Section, parse_config
from her2.core.errors import UserError
from her2.core.paths import NodePath, UserPath, user_path
from her2.core.reading import path_problem, write_problem
from her2.slides.staging import scratch_folder
from tests.unit.test_config import put, refusal

NOBODY = 65534


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DISK", "/data")
    monkeypatch.setenv("BLANK", "")
    monkeypatch.setenv("BRACES", "/data/{x}")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a b/c", "a b/c"),
        ("~", "/home/me"),
        ("~/x", "/home/me/x"),
        ("./~", "~"),
        ("a~/b", "a~/b"),
        ("$DISK/x", "/data/x"),
        ("${DISK}x", "/datax"),
        ("~/$DISK", "/home/me//data"),
        ("5$$", "5$"),
        ("日本/ü (1)'s [x]; #&", "日本/ü (1)'s [x]; #&"),
    ],
)
def test_a_path_is_what_its_user_means(variables: None, text: str, path: str) -> None:
    assert user_path(text) == Path(path)


REFUSED = [
    ("", "is empty"),
    ("  ", "is empty"),
    ("$UNSET/x", r"the variable \$UNSET is not set; set it"),
    ("$BLANK/x", r"the variable \$BLANK is not set"),
    ("5$", r"write \$\$ for a dollar sign"),
    ("~no-such-user-9/x", "there is no home folder ~no-such-user-9"),
    ("S1{rescan}.svs", r"contains \{ \}, which Snakemake takes for a wildcard"),
    ("a}b", r"contains \}"),
    ("<x>/a", "contains < >"),
    ("$BRACES/x", r"'/data/\{x\}/x' contains"),
    ("a\nb", r"control characters \(U\+000A\)"),
    ("a\0b", r"control characters \(U\+0000\)"),
    ("\ud800", r"control characters \(U\+D800\)"),
    ("s3://bucket/x", "is a URL"),
    ("x" * 300, "has 300 bytes; a file's name has at most 255"),
    ("é" * 150, "has 300 bytes"),
    ("x/" * 2500, "has 5,000 bytes; a path has at most 4,095"),
]


@pytest.mark.parametrize(("text", "problem"), REFUSED)
def test_what_can_be_no_path_is_refused_with_the_fix(
    variables: None, text: str, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        user_path(text)


NAMED = {"patches": "set/", "encoders": "own/", "heads": "abmil/", "validation": "yale/"}


def path_keys(section: type[Section] = Config, above: str = "") -> Iterator[str]:
    """The key of every path of the config; names in mappings are those of `config_of`."""
    for name, field in section.model_fields.items():
        for part in parts(field.annotation, field.metadata):
            if part is Path or part is UserPath or part is NodePath:
                yield above + name
            elif isinstance(part, type) and issubclass(part, Section):
                inner = "theirs/" if part is GivenSection else NAMED.get(name, "")
                yield from path_keys(part, f"{above}{name}/{inner}")


def parts(annotation: Any, marks: list[Any] | tuple[Any, ...] = ()) -> Iterator[Any]:
    """The types that a field can hold."""
    if get_origin(annotation) is Annotated:
        annotation, *marks = get_args(annotation)
    if annotation is str and set(get_args(NodePath)[1:]) & set(marks):
        yield NodePath
    yield annotation
    for part in get_args(annotation):
        yield from parts(part)


PATHS = sorted(set(path_keys()))


def config_of(values: dict[str, Any]) -> dict[str, Any]:
    encoder = {"source": "checkpoint", "model": "timm/resnet18", "domain": "he"}
    values["encoders"]["own"] = encoder | {"mpp": 0.5, "size": 224, "checkpoint": "w.pt"}
    values["encoders"]["theirs"] = {"source": "features", "path": "f", "identity": "UNI"}
    values["patches"] = {"set": {"format": "ihc4bc", "path": "p"}}
    values["tiling"] = {"segmenter": "hest", "artefact_segmenter": "grandqc"}
    values["validation"] = {"yale": {"slides": "yale.csv"}}
    return values


def test_every_path_of_the_config_is_found() -> None:
    assert {"results", "cache", "cohort/slides", "cohort/root", "cohort/masks"} < set(PATHS)
    assert {"cohort/tissue_masks", "encoders/own/checkpoint", "embedding/scratch"} < set(PATHS)
    assert "encoders/theirs/path" in PATHS
    assert {"patches/set/path", "patches/set/labels", "patches/set/slides"} < set(PATHS)


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("text", ["a{b}", "<a>", "a\0", "http://x/y", "x" * 300, " "])
def test_no_key_of_the_config_takes_what_can_be_no_path(
    config_values: dict[str, Any], key: str, text: str
) -> None:
    assert f"- {key.replace('/', '.')}: " in refusal(put(config_of(config_values), key, text))


@pytest.mark.parametrize("key", PATHS)
def test_variables_are_filled_in_under_every_key(
    config_values: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DISK", str(tmp_path))
    (tmp_path / "x").mkdir()
    found: Any = parse_config(put(config_of(config_values), key, "${DISK}/x"))
    for name in key.split("/"):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    if key == "embedding/scratch":  # on the machine that embeds
        found = scratch_folder(found)
    assert found == ((tmp_path / "x",) if key == "encoders/theirs/path" else tmp_path / "x")


def test_a_path_that_was_read_once_is_not_filled_in_again(config_values: dict[str, Any]) -> None:
    config = parse_config(put(config_values, "results", "a$$HOME"))
    assert config.results == Path("a$HOME")
    assert Config.model_validate_json(config.model_dump_json()).results == Path("a$HOME")


@pytest.mark.parametrize("column", ["path", "annotation", "mask"])
def test_no_cell_of_the_manifest_takes_what_can_be_no_path(
    write_csv: Callable[..., Path], variables: None, column: str
) -> None:
    cells = [one for one in REFUSED if one[0].strip() and not re.search(r"[\n\0\ud800]", one[0])]
    rows = [
        {"slide_id": f"s{number}", "path": "s.svs", "patient_id": f"p{number}", column: text}
        for number, (text, _) in enumerate(cells)
    ]
    with pytest.raises(UserError) as error:
        read_cohort(write_csv(rows), tasks={})
    for number, (_, problem) in enumerate(cells, start=2):
        assert re.search(f"row {number}: column '{column}': .*{problem}", str(error.value))


def test_variables_are_filled_in_in_the_manifest_and_not_a_part_of_its_digest(
    write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = {"path": "$DISK/a.svs", "annotation": "$DISK/a.xml", "mask": "~/a.png"}
    path = write_csv([{"slide_id": "s1", "patient_id": "p1", **cells}])
    digests = []
    for disk in ("/data", "/other"):
        monkeypatch.setenv("DISK", disk)
        monkeypatch.setenv("HOME", "/home/me")
        cohort = read_cohort(path, tasks={})
        (row,) = cohort.rows
        assert cohort.file(row) == Path(disk, "a.svs")
        assert cohort.annotation_file(row) == Path(disk, "a.xml")
        assert cohort.mask_file(row) == Path("/home/me/a.png")
        digests.append(cohort.digest(cohort.rows, cells))
    assert digests[0] == digests[1]
    monkeypatch.delenv("DISK")  # on the machine of a job
    with pytest.raises(UserError, match=r"slide 's1', column 'path': .*\$DISK is not set"):
        cohort.file(row)


@pytest.mark.parametrize(
    ("value", "folder"), [("", "cache"), (" ", "cache"), ("/shared", "/shared"), ("~/c", "/h/c")]
)
def test_a_shared_cache_is_used_where_it_is_set(
    config_values: dict[str, Any], value: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("HER2_CACHE", value)
    assert parse_config(config_values).cache_folder == Path(folder)


def test_a_shared_cache_that_can_be_no_folder_is_named(
    config_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HER2_CACHE", "c{x}")
    assert "the environment variable HER2_CACHE: 'c{x}' contains" in refusal(config_values)


def test_results_are_not_the_cache(config_values: dict[str, Any]) -> None:
    config_values |= {"results": "out", "cache": "./out"}
    assert "cache: 'out' is also `results`" in refusal(config_values)


def as_another_user(ask: Callable[[], str | None]) -> str | None:
    """What a function returns to a user whom permissions bind, also where the tests are root's."""
    if os.geteuid() != 0:
        return ask()
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:  # whatever happens, the child must not go on with the tests
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writer, repr(ask()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.wait()
    with os.fdopen(reader) as stream:
        said = stream.read()
    return None if said == "None" else said


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder below no folder that another user may not enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_what_is_no_file_is_named_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        problems = {
            "file": None,
            "pipe": "is a named pipe, not a file",
            "socket": "is a socket, not a file",
            "/dev/null": "is a device, not a file",
            "folder": "is a folder, not a file",
            "dangling": "is a link to 'nowhere', which does not exist",
            "loop": "cannot be looked up (Too many levels of symbolic links)",
            "nowhere": "does not exist",
            "file/x": "does not exist",
            "x" * 300: "cannot be looked up (File name too long)",
        }
        found = {name: path_problem(tmp_path / name) for name in problems}
    assert found == problems
    assert path_problem(tmp_path / "file", "folder") == "is a file, not a folder"
    assert path_problem(tmp_path / "folder", "folder") is None
    assert path_problem(tmp_path / "pipe", "file or folder") is not None


def test_a_file_that_may_not_be_read_is_named_with_the_folder_in_the_way(public: Path) -> None:
    closed = public / "closed"
    closed.mkdir()
    for name in ("locked", "closed/file"):
        (public / name).touch()
    (public / "locked").chmod(0o200)
    closed.chmod(0o600)
    locked = as_another_user(lambda: path_problem(public / "locked"))
    assert locked is not None
    assert "may not be read" in locked
    inside = as_another_user(lambda: path_problem(closed / "file"))
    assert inside is not None
    assert f"is in a folder that may not be entered ({closed})" in inside
    listed = as_another_user(lambda: path_problem(closed, "folder"))
    assert listed is not None
    assert "is a folder that may not be read" in listed
    closed.chmod(0o700)


def test_a_folder_that_cannot_be_made_is_named(public: Path) -> None:
    (public / "file").touch()
    (public / "dangling").symlink_to("nowhere")
    assert write_problem(public / "a/b/c") is None
    assert write_problem(public / "file/a") == (
        f"cannot be written: {public / 'file'} is not a folder"
    )
    assert "is a link to an absent 'nowhere'" in str(write_problem(public / "dangling/a"))
    assert "File name too long" in str(write_problem(public / ("x" * 300)))
    said = as_another_user(lambda: write_problem(public / "a/b"))
    assert said is not None
    assert f"{public} may not be written" in said
    assert sorted(path.name for path in public.iterdir()) == ["dangling", "file"]
