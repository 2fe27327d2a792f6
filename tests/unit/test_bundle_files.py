"""A bundle as files: written whole, with equal bytes, and no file in it can be changed unseen."""

import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from her2.core.errors import UserError
from her2.frozen.bundle import files as bundle_files
from her2.frozen.bundle import write
from her2.frozen.bundle.read import checked
from her2.frozen.bundle.schema import ENCODER_NAME, README_NAME
from tests.unit.bundle_makers import Parts, parts, rewrite

NAMES = [README_NAME, ENCODER_NAME, "r0f0.safetensors", "r0f1.safetensors"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def bundle(made: Parts, tmp_path: Path) -> Path:
    return made.write(tmp_path / "a.bundle")


@pytest.fixture
def zipped(made: Parts, tmp_path: Path) -> Path:
    return made.write(tmp_path / "a.zip", zipped=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in folder.iterdir()}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        checked(path)
    return str(caught.value)


# Written


def test_the_same_model_gives_the_same_bytes(made: Parts, bundle: Path, zipped: Path) -> None:
    umask = os.umask(0o077)
    try:
        again = made.write(bundle.with_name("b.bundle"))
        zip_again = made.write(bundle.with_name("b.zip"), zipped=True)
    finally:
        os.umask(umask)
    assert contents(again) == contents(bundle)
    assert zip_again.read_bytes() == zipped.read_bytes()


def test_a_zip_holds_the_files_of_the_folder(bundle: Path, zipped: Path) -> None:
    with zipfile.ZipFile(zipped) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == contents(bundle)
        assert {item.date_time for item in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == sorted(archive.namelist())


@pytest.mark.parametrize("zip_it", [False, True])
def test_a_bundle_that_breaks_off_leaves_nothing(
    made: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zip_it: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="No space left"):
        made.write(tmp_path / "out" / "a.bundle", zipped=zip_it)
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_that_change_while_they_are_copied_make_no_bundle(
    made: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(shutil, "copyfile", other)
    with pytest.raises(UserError, match="was changed"):
        made.write(tmp_path / "a.bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_bundle_is_replaced_only_by_force(made: Parts, bundle: Path) -> None:
    with pytest.raises(UserError, match="add --force"):
        write.check_target(bundle, force=False)
    write.check_target(bundle, force=True)
    made.with_body(licence="mit").write(bundle)
    assert "license: mit" in (bundle / README_NAME).read_text()
    assert [item.name for item in bundle.parent.iterdir()] == ["a.bundle"]


def test_a_zip_may_take_the_place_of_a_folder(made: Parts, bundle: Path) -> None:
    made.write(bundle, zipped=True)
    assert bundle.is_file()
    checked(bundle)


@pytest.mark.parametrize("target", [Path(), Path(".."), Path("/")])
def test_a_bundle_needs_a_name(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is no name for a bundle; name a folder or file in it"):
        write.check_target(target, force=True)


@pytest.mark.parametrize("what", ["folder", "file", "damaged bundle", "link to nothing"])
def test_what_is_no_bundle_is_never_replaced(bundle: Path, tmp_path: Path, what: str) -> None:
    target = tmp_path / "other"
    if what == "folder":
        target.mkdir()
        (target / "thesis.tex").touch()
    elif what == "file":
        target.write_text("thesis")
    elif what == "damaged bundle":
        (bundle / README_NAME).unlink()
        target = bundle
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="stays as it is"):
        write.check_target(target, force=True)


def test_an_earlier_bundle_stays_if_the_new_one_breaks_off(
    made: Parts, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(bundle)
    real = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if target == bundle:
            raise OSError(5, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OSError, match="Input/output"):
        made.with_body(licence="mit").write(bundle)
    assert contents(bundle) == before


def test_no_memory_is_spent_on_what_may_come(bundle: Path) -> None:
    """A limit of 64 GB is no reason to reserve them."""
    files, _ = checked(bundle)
    assert len(bundle_files.read_bytes(files, README_NAME, 1 << 60)) < 1 << 20


# Changed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["one bit", "shorter", "absent"])
def test_a_changed_file_is_named(bundle: Path, name: str, how: str) -> None:
    content = (bundle / name).read_bytes()
    middle = len(content) // 2
    if how == "one bit":
        rewrite(
            bundle / name, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        )
    elif how == "shorter":
        rewrite(bundle / name, content[:-1])
    else:
        (bundle / name).unlink()
    said = refusal(bundle)
    assert repr(name) in said
    assert not any(repr(other) in said for other in NAMES if other != name)


def test_swapped_models_are_both_named(bundle: Path) -> None:
    one, other = bundle / "r0f0.safetensors", bundle / "r0f1.safetensors"
    first, second = one.read_bytes(), other.read_bytes()
    assert len(first) == len(second)
    rewrite(one, second)
    rewrite(other, first)
    said = refusal(bundle)
    assert "'r0f0.safetensors' was changed: its digest is " in said
    assert "'r0f1.safetensors' was changed" in said


def test_no_changed_content_of_a_zip_is_accepted(zipped: Path, bundle: Path) -> None:
    content = zipped.read_bytes()
    refused = 0
    for place in range(0, len(content), len(content) // 15):
        rewrite(zipped, content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            files, _ = checked(zipped)
        except UserError:
            refused += 1
            continue
        # The byte is one that a zip has beside the content of its files.
        for name, expected in contents(bundle).items():
            assert bundle_files.read_bytes(files, name, 1 << 30) == expected
    assert refused > 10


@pytest.mark.parametrize("length", [0, 10, 5000, -1])
def test_a_cut_zip_is_refused(zipped: Path, length: int) -> None:
    rewrite(zipped, zipped.read_bytes()[:length])
    assert str(zipped) in refusal(zipped)


# What no bundle has


def _folder(path: Path) -> None:
    path.mkdir()


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _inner_link(path: Path) -> None:
    path.symlink_to(README_NAME)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_folder, "is no file"),
        (_link, "is a link"),
        (_inner_link, "is a link"),
        (os.mkfifo, "is no file"),
        (lambda path: path.write_bytes(b"cos\nsystem\n"), "is no file of the bundle"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
            "pointer of Git LFS",
        ),
    ],
)
def test_anything_else_in_the_folder_is_named(
    bundle: Path, make: Callable[[Path], object], why: str
) -> None:
    make(bundle / "model.pkl")
    said = refusal(bundle)
    assert "'model.pkl'" in said
    assert why in said


def test_a_model_that_is_a_link_out_of_the_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / NAMES[2]).rename(tmp_path / "elsewhere")
    (bundle / NAMES[2]).symlink_to(tmp_path / "elsewhere")
    assert "cp -rL" in refusal(bundle)


def test_what_a_hub_adds_is_not_read(bundle: Path) -> None:
    (bundle / ".gitattributes").write_text("*.safetensors filter=lfs")
    (bundle / ".cache").mkdir()
    checked(bundle)


def _zip(path: Path, name: str, content: bytes, **options: int) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo(name)
        member.compress_type = options.get("compress_type", zipfile.ZIP_STORED)
        member.external_attr = options.get("external_attr", 0)
        archive.writestr(member, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("../evil.py", {}, "leads into a folder"),
        ("/etc/cron.d/evil", {}, "leads into a folder"),
        ("..\\evil.py", {}, "leads into a folder"),
        ("a/b", {}, "leads into a folder"),
        ("..", {}, "leads into a folder"),
        ("evil.py", {}, "is no file of the bundle"),
        (README_NAME, {}, "is there twice"),
        ("big", {"compress_type": zipfile.ZIP_DEFLATED}, "is compressed"),
        ("link", {"external_attr": (stat.S_IFLNK | 0o777) << 16}, "is a link"),
    ],
)
def test_anything_else_in_the_zip_is_named(
    zipped: Path, name: str, options: dict[str, int], why: str
) -> None:
    _zip(zipped, name, b"0" * 100_000, **options)
    said = refusal(zipped)
    assert repr(name) in said
    assert why in said


def test_a_zip_that_claims_more_than_it_holds_is_refused(zipped: Path) -> None:
    """A central directory may say any size; memory must not be spent on its word."""
    content = zipped.read_bytes()
    with zipfile.ZipFile(zipped) as archive:
        member = archive.getinfo(ENCODER_NAME)
    sizes = member.file_size.to_bytes(4, "little") * 2
    place = content.rindex(sizes)
    rewrite(zipped, content[:place] + (0xFFFF0000).to_bytes(4, "little") * 2 + content[place + 8 :])
    assert "more than" in refusal(zipped)


def test_an_encrypted_member_is_refused(zipped: Path) -> None:
    content = bytearray(zipped.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 8] |= 1
    rewrite(zipped, bytes(content))
    assert "is encrypted" in refusal(zipped)


@pytest.mark.parametrize("what", ["nothing", "folder", "text", "json"])
def test_what_is_no_bundle_says_so(tmp_path: Path, what: str) -> None:
    path = tmp_path / "b"
    if what == "folder":
        path.mkdir()
    elif what != "nothing":
        path.write_text("{}" if what == "json" else "hello")
    said = refusal(path)
    assert said.startswith(str(path))
    assert any(word in said for word in ("does not exist", "has no bundle.json", "neither"))
