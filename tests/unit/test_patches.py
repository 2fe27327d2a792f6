import csv
import gzip
import logging
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import polars
import pytest
from PIL import Image
from pydantic import ValidationError

from her2.config import PatchesSection, jobs
from her2.core.errors import UserError
from her2.pretraining import patches as patches_module
from her2.pretraining.patch_set import PatchSet
from her2.pretraining.patches import read_patch_set, read_rgb
from her2.pretraining.split import split_patches

PCAM = "camelyonpatch_level_2_split_{}"


def picture(number: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)


def save(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number)).save(path)
    return path


def read(kind: str, path: Path, scratch: Path | None = None, **options) -> PatchSet:
    section = PatchesSection(format=kind, path=path, **options)
    return read_patch_set("p", section, scratch=scratch or path.parent / "scratch", threads=2)


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def folders(root: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    number = 0
    for label, count in counts.items():
        for i in range(count):
            number += 1
            save(root / label / f"{i:03d}{suffix}", number)
    return root


def with_cases(tmp_path: Path, cases: dict[str, dict[str, int]]) -> PatchSet:
    """Write a csv set from a mapping of case -> label -> number of patches."""
    rows, number = [], 0
    for case, labels in cases.items():
        for label, count in labels.items():
            for _ in range(count):
                number += 1
                save(tmp_path / "images" / f"{number}.png", number)
                rows.append({"path": f"images/{number}.png", "label": label, "case_id": case})
    return read("csv", write_table(tmp_path / "labels.csv", rows))


def pcam(root: Path, part: str, labels: list[int], wsi: list[str] | None, **changed) -> None:
    root.mkdir(exist_ok=True)
    images = np.stack([picture(i, 96) for i in range(changed.get("images", len(labels)))])
    with h5py.File(root / f"{PCAM.format(part)}_x.h5", "w") as file:
        file["x"] = images
    with h5py.File(root / f"{PCAM.format(part)}_y.h5", "w") as file:
        file["y"] = np.array(labels, np.uint8).reshape(-1, 1, 1, 1)
    if wsi is not None:
        rows = [{"": i, "tumor_patch": bool(i % 2), "wsi": name} for i, name in enumerate(wsi)]
        write_table(root / f"{PCAM.format(part)}_meta.csv", rows)


def test_class_folders_become_classes_in_order(tmp_path):
    root = folders(tmp_path / "set", {"b": 2, "a": 3})
    save(root / "a" / "deeper" / "x.png", 99)
    (root / ".DS_Store").write_bytes(b"not an image")
    found = read("folders", root)
    assert found.class_names == ("a", "b")
    assert found.counts == {"a": 4, "b": 2}
    assert not found.cases_known
    assert np.array_equal(found.read(found.ids.index("a/deeper/x.png")), picture(99))


def test_a_csv_names_path_label_and_case(tmp_path):
    found = with_cases(tmp_path, {"c1": {"1+": 2, "0": 1}, "c2": {"0": 2}})
    assert found.class_names == ("0", "1+")
    assert found.labels.tolist() == [1, 1, 0, 0, 0]
    assert found.cases == ("c1", "c1", "c1", "c2", "c2")
    assert np.array_equal(found.read(3), picture(4))


def test_a_csv_may_name_files_outside_its_folder(tmp_path):
    rows = [
        {"path": save(tmp_path / "elsewhere" / "1.png", 1), "label": "a"},
        {"path": "../elsewhere/2.png", "label": "b"},
    ]
    save(tmp_path / "elsewhere" / "2.png", 2)
    (tmp_path / "set").mkdir()
    found = read("csv", write_table(tmp_path / "set" / "labels.csv", rows))
    assert np.array_equal(found.read(1), picture(2))


def test_bci_scores_and_parts_come_from_the_names(tmp_path):
    for number, name in enumerate(["00000_train_1+", "00001_train_0", "00002_train_3+"]):
        save(tmp_path / "IHC" / "train" / f"{name}.png", number)
    save(tmp_path / "IHC" / "test" / "00000_test_2+.png", 9)
    found = read("bci", tmp_path / "IHC")
    assert found.class_names == ("0", "1+", "2+", "3+")
    by_id = dict(zip(found.ids, zip(found.labels.tolist(), found.parts, strict=True), strict=True))
    assert by_id["00000_train_1+.png"] == (1, "train")
    assert by_id["00000_test_2+.png"] == (2, "test")
    assert not found.cases_known


def test_bci_test_patches_are_neither_trained_nor_selected_on(tmp_path):
    for part, offset in (("train", 0), ("test", 100)):
        for i in range(10):
            save(tmp_path / "IHC" / part / f"{i + offset:05d}_{part}_{i % 2}+.png", i + offset)
    found = read("bci", tmp_path / "IHC")
    split = split_patches(found, share=0.2, seed=1)
    assert {found.parts[i] for i in [*split.train, *split.validation]} == {"train"}
    assert len(split.test) == 10
    assert split.split_by == "patch (cases unknown)"


BCI_LAYOUTS = ("{stain}/{part}", "{part}/{stain}")


def bci(root: Path, layout: str) -> Path:
    """Four pairs in a published layout; the pictures of the two stains differ."""
    for at, stain in enumerate(("HE", "IHC")):
        for number, name in enumerate(("0_train_1+", "1_train_0", "0_test_3+", "1_test_2+")):
            folder = layout.format(stain=stain, part=name.split("_")[1])
            save(root / folder / f"0000{name}.png", 10 * at + number)
    return root


@pytest.mark.parametrize("layout", BCI_LAYOUTS)
@pytest.mark.parametrize("stain", ["HE", "IHC"])
def test_bci_is_read_in_both_published_layouts_one_stain_of_it(tmp_path, layout, stain):
    found = read("bci", bci(tmp_path / "BCI", layout), stain=stain)
    assert found.class_names == ("0", "1+", "2+", "3+")
    assert Counter(found.parts) == {"train": 2, "test": 2}
    first = found.ids.index("00000_train_1+.png")
    assert np.array_equal(found.read(first), picture(10 * (stain == "IHC")))


def test_bci_is_the_same_set_in_both_layouts_and_as_the_folder_of_one_stain(tmp_path):
    roots = [bci(tmp_path / str(n), layout) for n, layout in enumerate(BCI_LAYOUTS)]
    digests = {read("bci", root, stain="IHC").digest for root in roots}
    digests |= {read("bci", roots[0] / "IHC", **said).digest for said in ({}, {"stain": "IHC"})}
    assert len(digests) == 1


@pytest.mark.parametrize("layout", BCI_LAYOUTS)
def test_both_stains_of_bci_at_once_are_refused_with_the_fix(tmp_path, layout):
    with pytest.raises(UserError, match="1 problem.*\n.*both stains; add `stain: HE` or"):
        read("bci", bci(tmp_path / "BCI", layout))


def test_a_stain_that_bci_has_not_there_is_named(tmp_path):
    root = bci(tmp_path / "BCI", "{stain}/{part}")
    with pytest.raises(UserError, match="without folders HE and IHC, and `stain` is HE"):
        read("bci", root / "IHC", stain="HE")
    shutil.rmtree(root / "HE")
    with pytest.raises(UserError, match="holds images of IHC alone, and `stain` is HE"):
        read("bci", root, stain="HE")


def test_a_bci_patch_in_the_folder_of_another_part_is_refused(tmp_path):
    root = bci(tmp_path / "BCI", "{part}/{stain}")
    save(root / "test" / "IHC" / "00007_train_0.png", 99)
    with pytest.raises(
        UserError,
        match=r"00007_train_0.png: name and folders are of different parts \(test, train\)",
    ):
        read("bci", root, stain="IHC")


def test_bci_patches_named_without_a_part_have_that_of_their_folder(tmp_path):
    for part in ("train", "test"):
        for number, score in enumerate(("0", "3+")):
            save(tmp_path / "set" / part / f"{part[:2]}{number}_{score}.png", number)
    assert Counter(read("bci", tmp_path / "set").parts) == {"train": 2, "test": 2}


def test_bci_names_without_a_score_are_all_named(tmp_path):
    for name in ("one", "two_4+", "00000_train_1+"):
        save(tmp_path / "set" / f"{name}.png")
    with pytest.raises(UserError) as error:
        read("bci", tmp_path / "set")
    assert "one.png" in str(error.value)
    assert "two_4+.png" in str(error.value)
    assert "00000_train" not in str(error.value).split("\n", 1)[1].replace("as in 00000_train", "")


def test_ihc4bc_cases_come_from_the_names(tmp_path):
    save(tmp_path / "set" / "3+" / "0_1010_11_1_2.png", 1)
    save(tmp_path / "set" / "0" / "her2_7_1011_2_0_5.png", 2)
    found = read("ihc4bc", tmp_path / "set")
    assert dict(zip(found.ids, found.cases, strict=True)) == {
        "0/her2_7_1011_2_0_5.png": "1011",
        "3+/0_1010_11_1_2.png": "1010",
    }


def test_ihc4bc_labels_may_come_from_a_table(tmp_path):
    rows = []
    for number, label in enumerate(["0", "3+", "0", "1+"]):
        save(tmp_path / "set" / f"0_{number}_1_0_0.png", number)
        rows.append({"path": f"0_{number}_1_0_0.png", "label": label})
    table = write_table(tmp_path / "labels.csv", rows)
    found = read(
        "ihc4bc", tmp_path / "set", labels=table, classes={"low": ["0", "1+"], "high": ["3+"]}
    )
    assert found.class_names == ("low", "high")
    assert found.labels.tolist() == [0, 1, 0, 0]
    assert found.cases == ("0", "1", "2", "3")


IHC4BC = """\
0_1010_11_1_2.png,a,4,0.05,0.3,0.4,0.01
0_1010_11_1_3.png,a,10,0.3,0.01
0_1011_2_0_5.png,0,3,0.9,0.9,0.9
0_1012_1_0_0.png,d,2,0.9,0.9
0_1013_1_0_0.png,a,2,0.31,0.9,0.9

"""
CUTS = {"stained_dab": 0.3, "stained_share": 0.25}


def ihc4bc(folder: Path, text: str = IHC4BC) -> Path:
    """The set as it is published: flat images, and a csv without a header beside them."""
    for number, line in enumerate(text.split()):
        if line.split(",")[1] != "d":  # these are not published
            save(folder / "set" / line.split(",")[0], number)
    (folder / "ER.csv").write_text(text)
    return folder / "ER.csv"


def test_ihc4bc_s_own_csv_gives_classes_by_the_share_of_stained_nuclei(tmp_path):
    found = read("ihc4bc", tmp_path / "set", labels=ihc4bc(tmp_path), **CUTS)
    assert {
        one: found.class_names[at] for one, at in zip(found.ids, found.labels, strict=True)
    } == {
        "0_1010_11_1_2.png": "positive",  # 2 of 4
        "0_1010_11_1_3.png": "negative",  # 1 of 10
        "0_1011_2_0_5.png": "negative",  # as the annotators wrote, whatever the DAB
        "0_1013_1_0_0.png": "positive",  # 3 of 2, which were counted on the other stain
    }
    assert found.cases == ("1010", "1010", "1011", "1013")


def test_the_marks_of_ihc4bc_s_own_csv_are_never_taken_for_classes(tmp_path):
    with pytest.raises(UserError) as error:
        read("ihc4bc", tmp_path / "set", labels=ihc4bc(tmp_path))
    assert "its second column is no class but a mark of the annotators" in str(error.value)
    assert "Set `stained_dab`" in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0_7_1_0_0.png,2+,3,0.9", r"row 7: column 2 has '2\+', not a mark"),
        ("0_7_1_0_0.png", "row 7: column 2 has nothing, not a mark"),
        ("0_7_1_0_0.png,a,3,x", "row 7: could not convert string to float: 'x'"),
        ("0_7_1_0_0.png,a,nan,1", "row 7: the number of nuclei and their DAB must be numbers"),
        ("0_7_1_0_0.png,a,0", "row 7: accepted, but without nuclei"),
        ("0_7_1_0_0.png,a", r"HER2 has no DAB analysis: it needs a csv `path,label`"),
        ("0_7_1_0_0.png,a,1,1", "0_7_1_0_0.png: the file does not exist"),
        ("0_1013_1_0_0.png,a,1,1", "0_1013_1_0_0.png: is listed twice"),
    ],
)
def test_a_row_of_ihc4bc_s_own_csv_that_says_nothing_is_named(tmp_path, line, message):
    table = ihc4bc(tmp_path)
    table.write_text(f"{IHC4BC}{line}\n")
    with pytest.raises(UserError, match=message):
        read("ihc4bc", tmp_path / "set", labels=table, **CUTS)


def test_labels_of_ihc4bc_in_parquet_are_not_taken_for_a_csv_without_a_header(tmp_path):
    names = ["0_1_1_0_0.png", "0_2_1_0_0.png"]
    for number, name in enumerate(names):
        save(tmp_path / "set" / name, number)
    polars.DataFrame({"path": names, "label": ["0", "3+"]}).write_parquet(tmp_path / "l.parquet")
    found = read("ihc4bc", tmp_path / "set", labels=tmp_path / "l.parquet")
    assert found.class_names == ("0", "3+")


def test_flat_ihc4bc_images_ask_for_their_csv_once(tmp_path):
    ihc4bc(tmp_path)
    with pytest.raises(UserError, match="its 4 images are in no class folders; set `labels`"):
        read("ihc4bc", tmp_path / "set")


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("folders", {"stain": "HE"}),
        ("ihc4bc", {"stained_dab": 0.3}),
        ("ihc4bc", {"stained_dab": 0.3, "stained_share": 0.1}),
        ("csv", {"stained_share": 0.1}),
    ],
)
def test_options_of_one_format_are_refused_where_they_would_do_nothing(format, options):
    with pytest.raises(ValidationError, match="`stain"):
        PatchesSection(format=format, path="p", **options)


def test_keys_that_nobody_set_leave_the_specs_of_encoders_as_they_were():
    given = {"format": "bci", "path": "p"}
    assert "stain" not in PatchesSection(**given).model_dump_json()
    assert '"stain":"HE"' in PatchesSection(**given, stain="HE").model_dump_json()


def test_an_ihc4bc_name_without_case_is_refused(tmp_path):
    save(tmp_path / "set" / "0" / "0_1010_11_1_2.png")
    save(tmp_path / "set" / "3+" / "patch_17.png")
    with pytest.raises(UserError, match="patch_17.png.*xxx_caseid_region_row_col"):
        read("ihc4bc", tmp_path / "set")


@pytest.mark.parametrize("packed", [False, True])
def test_pcam_reads_patches_out_of_its_files_with_the_slide_as_case(tmp_path, packed):
    root = tmp_path / "pcam"
    pcam(root, "train", [0, 1, 1, 0], ["w1", "w1", "w2", "w2"])
    pcam(root, "valid", [1, 0], ["w3", "w3"])
    if packed:
        for path in list(root.glob("*.h5")):
            with gzip.open(f"{path}.gz", "wb") as out:
                out.write(path.read_bytes())
            path.unlink()
    found = read("pcam", root)
    assert found.class_names == ("normal", "tumour")
    assert found.labels.tolist() == [0, 1, 1, 0, 1, 0]
    assert list(found.cases) == ["w1", "w1", "w2", "w2", "w3", "w3"]
    assert np.array_equal(found.read(2), picture(2, 96))
    assert np.array_equal(found.read(5), picture(1, 96))
    split = split_patches(found, share=0.2, seed=1)
    assert split.validation.tolist() == [4, 5]
    assert split.split_by == "the set's own parts"


def test_a_gzipped_pcam_is_unpacked_once(tmp_path):
    root, scratch = tmp_path / "pcam", tmp_path / "scratch"
    pcam(root, "train", [0, 1], ["w1", "w2"])
    for path in list(root.glob("*.h5")):
        with gzip.open(f"{path}.gz", "wb") as out:
            out.write(path.read_bytes())
        path.unlink()
    read("pcam", root, scratch)
    times = {path: path.stat().st_mtime_ns for path in scratch.iterdir()}
    read("pcam", root, scratch)
    assert {path: path.stat().st_mtime_ns for path in scratch.iterdir()} == times
    assert len(times) == 2


def test_pcam_of_different_lengths_names_both_files(tmp_path):
    pcam(tmp_path / "pcam", "train", [0, 1, 1], ["w1", "w1", "w2"], images=2)
    with pytest.raises(UserError) as error:
        read("pcam", tmp_path / "pcam")
    assert "train_x.h5 has 2 patches" in str(error.value)
    assert "train_y.h5 has 3 labels" in str(error.value)


def test_all_that_is_wrong_with_pcam_is_said_at_once(tmp_path):
    root = tmp_path / "pcam"
    pcam(root, "train", [0, 1, 2], ["w1", "w1"])
    pcam(root, "valid", [0, 1], None)
    (root / f"{PCAM.format('valid')}_y.h5").unlink()
    with pytest.raises(UserError) as error:
        read("pcam", root)
    message = str(error.value)
    assert "labels [2]" in message
    assert "_meta.csv has 2 rows" in message
    assert f"{PCAM.format('valid')}_y.h5[.gz]: missing" in message


def test_a_broken_gzip_of_pcam_is_named(tmp_path):
    root = tmp_path / "pcam"
    pcam(root, "train", [0, 1], None)
    path = root / f"{PCAM.format('train')}_x.h5"
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes())[:-2000])
    path.unlink()
    with pytest.raises(UserError, match=r"train_x\.h5\.gz: cannot be read"):
        read("pcam", root)


def test_pcam_slides_in_two_of_its_parts_are_refused(tmp_path):
    pcam(tmp_path / "pcam", "train", [0, 1], ["w1", "w2"])
    pcam(tmp_path / "pcam", "valid", [0, 1], ["w2", "w3"])
    with pytest.raises(UserError, match="w2 is in train and valid"):
        split_patches(read("pcam", tmp_path / "pcam"), share=0.2, seed=1)


def test_pcam_without_its_meta_says_that_cases_are_unknown(tmp_path, caplog):
    pcam(tmp_path / "pcam", "train", [0, 1] * 5, None)
    with caplog.at_level(logging.WARNING):
        found = read("pcam", tmp_path / "pcam")
    assert "source slides are unknown" in caplog.text
    assert split_patches(found, share=0.2, seed=1).split_by == "patch (cases unknown)"


def test_classes_merge_order_and_leave_out_labels(tmp_path):
    root = folders(tmp_path / "set", {"0": 2, "1+": 3, "2+": 4, "3+": 5})
    found = read("folders", root, classes={"low": ["1+", "0"], "high": ["3+"]})
    assert found.counts == {"low": 5, "high": 5}
    assert found.left_out == {"2+": 4}


def test_the_order_of_classes_survives_a_spec():
    section = PatchesSection(
        format="folders", path="x", classes={"low": ["0"], "mid": ["1"], "high": ["2"]}
    )
    assert list(jobs.load(PatchesSection, jobs.dump(section)).classes) == ["low", "mid", "high"]


def test_a_class_of_an_absent_label_names_the_labels_there_are(tmp_path):
    root = folders(tmp_path / "set", {"0": 1, "3+": 1})
    with pytest.raises(UserError, match="no label '3'; its labels are 0 .1., 3. .1."):
        read("folders", root, classes={"low": ["0"], "high": ["3"]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": {"a": ["0"], "b": ["0"]}}, "is in 'a' and 'b'"),
        ({"classes": {"a": ["0"], "b": []}}, "lists no label"),
        ({"labels": "x.csv"}, "is only for `format: ihc4bc`"),
        ({"shape": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_section_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        PatchesSection(format="folders", path="x", **values)


def test_one_class_is_refused(tmp_path):
    with pytest.raises(UserError, match="has only one class, a .3."):
        read("folders", folders(tmp_path / "set", {"a": 3}))


def test_an_empty_set_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="no image"):
        read("folders", tmp_path / "set")


@pytest.mark.parametrize(("kind", "what"), [("folders", "folder"), ("csv", "file")])
def test_a_missing_path_is_named(tmp_path, kind, what):
    with pytest.raises(UserError, match=f"patches.p.path: the {what} .*nowhere.* does not exist"):
        read(kind, tmp_path / "nowhere")


def test_stray_images_and_empty_class_folders_are_said_at_once(tmp_path):
    root = folders(tmp_path / "set", {"a": 1, "b": 1})
    save(root / "stray.png")
    (root / "c").mkdir()
    with pytest.raises(UserError, match=r"(?s)2 problem.*stray.png.*c/: holds no image"):
        read("folders", root)


def test_all_missing_files_of_a_csv_are_named_at_once(tmp_path):
    save(tmp_path / "1.png")
    rows = [
        {"path": "1.png", "label": "a", "case_id": "c"},
        {"path": "2.png", "label": "b", "case_id": ""},
        {"path": "3.png", "label": "b", "case_id": "c"},
        {"path": "1.png", "label": "b", "case_id": "c"},
    ]
    with pytest.raises(UserError) as error:
        read("csv", write_table(tmp_path / "labels.csv", rows))
    message = str(error.value)
    assert "4 problem(s)" in message
    assert "2.png: the file does not exist" in message
    assert "3.png: the file does not exist" in message
    assert "1.png: is listed twice" in message
    assert "case_id is missing in 1 of 4 rows" in message


def test_a_csv_without_its_columns_says_which_it_has(tmp_path):
    table = write_table(tmp_path / "labels.csv", [{"file": "1.png", "label": "a"}])
    with pytest.raises(UserError, match="no column path; its columns are file, label"):
        read("csv", table)


def test_a_blank_label_names_its_row(tmp_path):
    rows = [{"path": "1.png", "label": "a"}, {"path": "2.png", "label": ""}]
    with pytest.raises(UserError, match=r"row 3: column 'label': is empty"):
        read("csv", write_table(tmp_path / "labels.csv", rows))


SHEETS = {
    "path,label,label\n1.png,a,b\n2.png,b,a\n": "column 'label': is there 2 times",
    "path,label,case_id\n1.png,a,P-1\n2.png,b,p-1\n": "'P-1' and 'p-1' differ in nothing but case",
    "path,label,case_id\n1.png,a,7\n2.png,b,7.0\n": "'7' and '7.0' differ in nothing",
    "path,label,case_id\n1.png,a,7\n2.png,b,NA\n": "case_id is missing in 1 of 2 rows",
    "path,label\n1.png,Tumour\n2.png,tumour\n": "'Tumour' and 'tumour' differ in nothing",
    "path,label\n1.png,a\n2.png\n": "row 3: has fewer cells than the header",
    "path,label\n1.png,a\n2.png,b,c\n": "row 3: has more cells than the header",
    "path,label\n1.png,a\n2.png,NaN\n": "row 3: column 'label': 'NaN' means a missing value",
    "path,label\n1.png,a\n" + "x" * 300 + ".png,b\n": "the file cannot be looked up (File name too",
    "path,label\n1.png,a\n.,b\n": ".: the file is a folder",
    "path,label\n1.png,\xfc\n": "is not in UTF-8; in Windows-1252 it would have 'ü'",
}


@pytest.mark.parametrize("sheet", SHEETS, ids=SHEETS.values())
def test_a_sheet_of_patches_is_read_as_strictly_as_a_manifest(tmp_path, sheet):
    for number in (1, 2):
        save(tmp_path / f"{number}.png", number)
    (tmp_path / "labels.csv").write_bytes(sheet.encode("cp1252"))
    with pytest.raises(UserError) as error:
        read("csv", tmp_path / "labels.csv")
    assert SHEETS[sheet] in str(error.value)


def test_a_label_that_the_config_names_is_meant_even_if_it_is_none(tmp_path):
    for number in (1, 2):
        save(tmp_path / f"{number}.png", number)
    (tmp_path / "labels.csv").write_text("path;label\n 1.png ;none\n2.png;None \n\n")
    found = read("csv", tmp_path / "labels.csv", classes={"no": ["none"], "yes": ["None"]})
    assert found.counts == {"no": 1, "yes": 1}
    assert found.ids == ("1.png", "2.png")


def test_slides_of_two_parts_of_pcam_that_look_alike_are_refused(tmp_path):
    pcam(tmp_path / "pcam", "train", [0, 1], ["w1", "w2"])
    pcam(tmp_path / "pcam", "valid", [0, 1], ["W2", "w3"])
    with pytest.raises(UserError, match="column 'wsi': 'w2' and 'W2' differ in nothing"):
        read("pcam", tmp_path / "pcam")


def broken(path: Path, how: str) -> None:
    image = Image.fromarray(picture(1))
    match how:
        case "truncated":
            path.write_bytes(path.read_bytes()[:90])
        case "text":
            path.write_text("not an image")
        case "grey":
            image.convert("L").save(path)
        case "palette":
            image.convert("P").save(path)
        case "CMYK":
            image.convert("CMYK").save(path, format="TIFF")
        case "transparent":
            image.convert("RGBA").save(path)
            see_through = Image.open(path)
            see_through.putalpha(10)
            see_through.save(path)


BROKEN = {
    "truncated": "cannot be read",
    "text": "cannot be read",
    "grey": "mode is L",
    "palette": "mode is P",
    "CMYK": "mode is CMYK",
    "transparent": "mode is RGBA",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_few_unusable_images_are_named_and_left_out(tmp_path, caplog, how):
    root = folders(tmp_path / "set", {"a": 20, "b": 20})
    broken(root / "a" / "007.png", how)
    with caplog.at_level(logging.WARNING):
        found = read("folders", root)
    assert found.counts == {"a": 19, "b": 20}
    assert len(found.unusable) == 1
    assert found.unusable[0].startswith("a/007.png: ")
    assert BROKEN[how] in found.unusable[0]
    assert "1 of 40 images cannot be used" in caplog.text
    assert np.array_equal(found.read(7), picture(9))


def test_more_than_a_few_unusable_images_stop_the_run(tmp_path):
    root = folders(tmp_path / "set", {"a": 20, "b": 20})
    for i in range(12):
        broken(root / "b" / f"{i:03d}.png", "grey")
    with pytest.raises(UserError, match="12 of 40 images cannot be used, more than 5%") as error:
        read("folders", root)
    assert str(error.value).count("mode is L") == 10
    assert "and 2 more" in str(error.value)


def test_an_opaque_alpha_channel_is_dropped(tmp_path):
    Image.fromarray(picture(3)).convert("RGBA").save(tmp_path / "a.png")
    assert np.array_equal(read_rgb(tmp_path / "a.png"), picture(3))


def test_the_digest_is_of_content_not_of_place(tmp_path):
    root = folders(tmp_path / "set", {"a": 3, "b": 3})
    before = read("folders", root).digest
    shutil.move(root, tmp_path / "moved")
    assert read("folders", tmp_path / "moved").digest == before
    save(tmp_path / "moved" / "a" / "001.png", 77)
    assert read("folders", tmp_path / "moved").digest != before


def test_the_digest_knows_labels_and_cases(tmp_path):
    one = with_cases(tmp_path, {"c1": {"a": 2}, "c2": {"b": 2}}).digest
    assert with_cases(tmp_path, {"c1": {"a": 2}, "c3": {"b": 2}}).digest != one
    assert with_cases(tmp_path, {"c1": {"b": 2}, "c2": {"a": 2}}).digest != one


def test_images_that_are_not_kept_are_read_again(tmp_path, monkeypatch):
    root = folders(tmp_path / "set", {"a": 3, "b": 3})
    kept = read("folders", root)
    monkeypatch.setattr(patches_module, "KEEP_BYTES", 400)
    again = read("folders", root)
    assert all(np.array_equal(kept.read(i), again.read(i)) for i in range(6))


@pytest.mark.parametrize("seed", range(5))
def test_a_split_by_case_never_crosses_and_keeps_every_class_on_both_sides(tmp_path, seed):
    cases = {f"c{i}": {"a": 3, "b": i % 3} if i % 2 else {"b": 4, "c": 2} for i in range(16)}
    found = with_cases(tmp_path, cases)
    split = split_patches(found, share=0.25, seed=seed)
    train, validation = ({found.cases[i] for i in part} for part in (split.train, split.validation))
    assert not train & validation
    assert split.split_by == "case"
    assert sorted([*split.train, *split.validation]) == list(range(len(found)))
    for label in range(3):
        here = np.count_nonzero(found.labels[split.validation] == label)
        assert 0.1 < here / np.count_nonzero(found.labels == label) < 0.45


def test_a_random_split_gives_each_class_its_share(tmp_path):
    found = read("folders", folders(tmp_path / "set", {"a": 20, "b": 10, "c": 2}))
    split = split_patches(found, share=0.2, seed=3)
    assert Counter(found.labels[split.validation].tolist()) == {0: 4, 1: 2, 2: 1}
    assert split.split_by == "patch (cases unknown)"
    again = split_patches(found, share=0.2, seed=3)
    assert np.array_equal(split.validation, again.validation)
    other = split_patches(found, share=0.2, seed=4)
    assert not np.array_equal(split.validation, other.validation)


def test_a_class_of_a_single_case_cannot_be_split(tmp_path):
    found = with_cases(tmp_path, {"c1": {"a": 3}, "c2": {"a": 3}, "c3": {"b": 5}})
    with pytest.raises(UserError, match="needs at least two cases.*\n.*class 'b' has no"):
        split_patches(found, share=0.2, seed=1)


def test_a_set_without_cases_reads_the_same_whatever_its_name(tmp_path):
    found = read("folders", folders(tmp_path / "set", {"a": 4, "b": 4}))
    split, renamed = (
        split_patches(p, share=0.3, seed=1) for p in (found, replace(found, name="other"))
    )
    assert np.array_equal(split.train, renamed.train)
