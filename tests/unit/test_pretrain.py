import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from her2.config import PretrainingSection
from her2.core.errors import UserError
from her2.core.files import canonical_json
from her2.encoders.backbones import build_backbone
from her2.encoders.stage import weights_digest
from her2.pretraining import loop
from her2.pretraining.augment import moved, plain, restain, stain_changes
from her2.pretraining.loop import PatchBatches, balanced_order, learning_rate
from her2.pretraining.patch_set import PatchSet
from her2.pretraining.pretrain import CHECKPOINT, Pretrained, channel_statistics, pretrain
from her2.pretraining.split import split_patches

SIDE = 32
EPOCHS = 4
SETTINGS = PretrainingSection(epochs=EPOCHS, batch_size=8, precision="float32", patience=EPOCHS)


pytestmark = pytest.mark.usefixtures("one_thread")


def patch_set(counts: tuple[int, ...] = (16, 16, 16), side: int = SIDE, **changed) -> PatchSet:
    """Make stripes in random colours whose width is the class, with four cases per class."""
    labels = np.repeat(np.arange(len(counts)), counts)

    def read(index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        stripes = (np.arange(side) + rng.integers(8)) // (1 + 2 * int(labels[index])) % 2
        one, other = rng.integers(0, 256, (2, 1, 1, 3))
        image = np.where(stripes[:, None, None], one, other)
        image = np.broadcast_to(image, (side, side, 3)) + rng.integers(-9, 9, (side, side, 3))
        return np.clip(image, 0, 255).astype(np.uint8)

    values = {
        "name": "stripes",
        "format": "csv",
        "class_names": tuple("abcdef"[: len(counts)]),
        "ids": [str(i) for i in range(len(labels))],
        "labels": labels,
        "cases": [f"case-{label}-{i % 4}" for i, label in enumerate(labels)],
        "parts": [None] * len(labels),
        "read": read,
        "digest": f"digest of {counts}",
    }
    return PatchSet(**(values | changed))


def run(folder: Path, patches: PatchSet | None = None, seed: int = 5, **changed) -> Pretrained:
    torch.manual_seed(1)
    feature = changed.pop("feature", "pooled")
    model = changed.pop("model", "test_resnet")
    library = changed.pop("library", "timm")
    arguments = changed.pop("arguments", {})
    backbone = build_backbone(library, model, feature=feature, arguments=arguments)
    values = {
        "backbone": backbone,
        "feature": feature,
        "size_px": SIDE,
        "mpp": 1.0,
        "init": {"kind": "random"},
        "settings": SETTINGS,
        "seed": seed,
        "device": torch.device("cpu"),
        "checkpoint_dir": folder,
    }
    return pretrain(patches or patch_set(), **(values | changed))


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory) -> Pretrained:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run(tmp_path_factory.mktemp("unkilled"))
    torch.set_num_threads(before)
    return found


def stuck_after(reads: int, patches: PatchSet) -> PatchSet:
    """Return the same patches with a reader that hangs at some point, where the job is killed."""
    lock, seen = threading.Lock(), []

    def read(index: int) -> np.ndarray:
        with lock:
            seen.append(index)
            if len(seen) > reads:
                time.sleep(600)
        return patches.read(index)

    return dataclasses.replace(patches, read=read)


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.unit.test_pretrain import patch_set, run, stuck_after
# Statistics read the training patches once, an epoch reads all: the third epoch is cut short.
run(Path(sys.argv[1]), stuck_after(36 + 2 * 48 + 20, patch_set()))
"""


def test_a_killed_run_resumes_to_the_weights_of_one_that_was_not(tmp_path, unkilled, caplog):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)])
    deadline = time.monotonic() + 120
    while _epochs_written(tmp_path) < 2:
        assert child.poll() is None, "the child ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert _epochs_written(tmp_path) == 2
    with caplog.at_level("INFO"):
        resumed = run(tmp_path)
    assert "resuming after 2 epochs" in caplog.text
    assert weights_digest(resumed.state) == weights_digest(unkilled.state)
    assert resumed.history == unkilled.history
    assert resumed.facts == unkilled.facts


def _epochs_written(folder: Path) -> int:
    try:
        with safetensors.safe_open(folder / CHECKPOINT, framework="pt") as stream:
            return len(json.loads(stream.metadata()["state"])["history"])
    except FileNotFoundError:
        return 0


def test_a_run_stopped_at_any_epoch_resumes_to_the_same_weights(tmp_path, unkilled, monkeypatch):
    whole = loop.validate
    calls = []

    def stops_every_second_time(*arguments, **named):
        calls.append(1)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        return whole(*arguments, **named)

    monkeypatch.setattr("her2.pretraining.pretrain.validate", stops_every_second_time)
    for _ in range(EPOCHS - 1):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert weights_digest(run(tmp_path).state) == weights_digest(unkilled.state)


def test_a_finished_run_trains_no_more(tmp_path, monkeypatch):
    first = run(tmp_path)
    monkeypatch.delattr("her2.pretraining.pretrain.train_epoch")
    assert weights_digest(run(tmp_path).state) == weights_digest(first.state)


def test_a_checkpoint_of_other_data_or_seed_is_not_continued(tmp_path, unkilled, caplog):
    run(tmp_path, patch_set((16, 20, 16)))
    assert "with other data or settings" not in caplog.text
    assert weights_digest(run(tmp_path).state) == weights_digest(unkilled.state)
    assert "with other data or settings" in caplog.text


def test_a_broken_checkpoint_is_not_continued(tmp_path, unkilled, caplog):
    (tmp_path / CHECKPOINT).write_bytes(b"PK\x03\x04 half a file")
    (tmp_path / f".abc.tmp.{CHECKPOINT}").write_bytes(b"a leftover")
    (tmp_path / "checkpoint.pt").write_bytes(b"as version 0.1 wrote it")
    found = run(tmp_path)
    assert "training starts over" in caplog.text
    assert "checkpoint.pt: is not a complete checkpoint of this version" in caplog.text
    assert weights_digest(found.state) == weights_digest(unkilled.state)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_the_same_seed_gives_the_same_weights_whatever_the_readers(tmp_path, unkilled):
    found = run(tmp_path, threads=3)
    assert weights_digest(found.state) == weights_digest(unkilled.state)
    assert canonical_json(found.facts) == canonical_json(unkilled.facts)


def test_another_seed_gives_other_weights(tmp_path, unkilled):
    assert weights_digest(run(tmp_path, seed=6).state) != weights_digest(unkilled.state)


def test_the_random_numbers_of_the_process_are_left_alone(tmp_path):
    torch.manual_seed(1)
    build_backbone("timm", "test_resnet", feature="pooled", arguments={})
    expected = torch.get_rng_state()
    run(tmp_path, settings=PretrainingSection(epochs=1, batch_size=8))
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_backbone_learns_the_classes_and_says_so(tmp_path):
    settings = PretrainingSection(epochs=10, batch_size=16, precision="float32")
    found = run(tmp_path, patch_set((80, 80)), settings=settings)
    best = found.history[found.best_epoch]
    assert best.balanced_accuracy == max(e.balanced_accuracy for e in found.history) >= 0.9
    assert found.facts["best"] == dataclasses.asdict(best)


def test_training_stops_after_patience_and_keeps_the_best_epoch(tmp_path):
    settings = SETTINGS.model_copy(update={"epochs": 30, "patience": 2, "learning_rate": 1e-12})
    found = run(tmp_path, settings=settings)
    assert len(found.history) - 1 - found.best_epoch == 2
    tensors = safetensors.torch.load_file(tmp_path / CHECKPOINT)
    best, last = (_backbone_of(tensors, name) for name in ("best", "model"))
    assert weights_digest(found.state) == weights_digest(best)
    assert weights_digest(found.state) != weights_digest(last)


def _backbone_of(state: dict[str, torch.Tensor], which: str) -> dict[str, torch.Tensor]:
    prefix = f"{which}/encoder.backbone."
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def test_the_weights_are_those_of_a_backbone_without_classifier(unkilled):
    backbone = build_backbone("timm", "test_resnet", feature="pooled", arguments={})
    assert set(unkilled.state) == set(backbone.state_dict())
    assert all(tensor.is_contiguous() for tensor in unkilled.state.values())


def test_the_facts_are_json_and_tell_where_the_weights_come_from(unkilled):
    facts = unkilled.facts
    canonical_json(facts)
    assert facts["classes"] == {"a": 16, "b": 16, "c": 16}
    assert facts["split_by"] == "case"
    assert facts["patches"] == {"train": 36, "validation": 12, "test": 0}
    assert facts["cases"] == sorted(f"case-{label}-{i}" for label in range(3) for i in range(4))
    assert facts["init"]["kind"] == "random"
    assert facts["epochs"] == len(unkilled.history)
    assert facts["settings"]["batch_size"] == 8


def test_unknown_cases_are_said_and_not_listed(tmp_path):
    found = run(tmp_path, patch_set(cases=[None] * 48))
    assert found.facts["split_by"] == "patch (cases unknown)"
    assert found.facts["cases"] == []


def test_a_sets_own_test_part_is_measured_and_its_cases_are_not_training_cases(tmp_path):
    patches = patch_set(parts=["test" if i % 4 == 3 else None for i in range(48)])
    found = run(tmp_path, patches)
    assert found.facts["patches"]["test"] == 12
    assert 0 <= found.facts["test"]["balanced_accuracy"] <= 1
    assert not [case for case in found.facts["cases"] if case.endswith("-3")]


def test_a_test_part_of_one_class_has_no_auc(tmp_path):
    patches = patch_set(parts=["test" if i < 4 else None for i in range(48)], cases=[None] * 48)
    test = run(tmp_path, patches, settings=PretrainingSection(epochs=1)).facts["test"]
    assert test["mean_auc"] is None
    assert math.isfinite(test["loss"])


def test_statistics_equal_those_of_numpy():
    patches = patch_set()
    indices = np.array([0, 5, 40])
    pixels = np.stack([patches.read(i) for i in indices]).reshape(-1, 3) / 255
    mean, std = channel_statistics(patches, indices, threads=2)
    assert mean == pytest.approx(pixels.mean(axis=0), abs=1e-12)
    assert std == pytest.approx(pixels.std(axis=0), abs=1e-12)
    assert all(0 <= value <= 1 for value in (*mean, *std))


def test_a_blank_channel_does_not_divide_by_zero():
    patches = patch_set(read=lambda _: np.full((4, 4, 3), 200, np.uint8))
    mean, std = channel_statistics(patches, np.arange(3))
    assert mean == pytest.approx((200 / 255,) * 3)
    assert std == (1.0, 1.0, 1.0)


def test_statistics_are_of_the_training_patches_alone(tmp_path, unkilled):
    split = split_patches(patch_set(), share=SETTINGS.validation, seed=5)
    mean, _ = channel_statistics(patch_set(), split.train)
    assert unkilled.mean == mean
    assert unkilled.mean != channel_statistics(patch_set(), np.arange(48))[0]


def test_classes_are_drawn_evenly_and_patches_of_a_class_too():
    labels = np.repeat([0, 1, 2], [90, 9, 1])
    order = balanced_order(labels, np.random.default_rng(1))
    assert len(order) == 100
    assert set(Counter(labels[order].tolist()).values()) <= {33, 34}
    rare = Counter(order[labels[order] == 1].tolist())
    assert set(rare.values()) <= {3, 4}
    common = order[labels[order] == 0]
    assert len(set(common.tolist())) == len(common)


def test_an_epoch_of_a_lopsided_set_shows_the_model_even_classes():
    feed = PatchBatches(patch_set((40, 8)), SIDE, None, 8, 1.0, 1)
    labels = torch.cat([labels for _, labels, _ in feed.training(np.arange(48), 1, 0)])
    assert torch.bincount(labels).tolist() == [24, 24]


def test_balanced_classes_show_every_patch_once_an_epoch():
    order = balanced_order(np.repeat([0, 1], 20), np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(40))


def batches(epoch: int, threads: int = 1) -> list[bytes]:
    feed = PatchBatches(patch_set(), SIDE, None, 8, 1.0, threads)
    return [
        patches.numpy().tobytes() + labels.numpy().tobytes() + changes[0].numpy().tobytes()
        for patches, labels, changes in feed.training(np.arange(48), 1, epoch)
    ]


def test_every_epoch_has_an_order_and_pictures_of_its_own():
    first, second = batches(0), batches(1)
    assert len(first) == 6
    assert not set(first) & set(second)
    labels = [
        torch.cat(
            [
                b[1]
                for b in PatchBatches(patch_set(), SIDE, None, 8, 0.0, 1).training(
                    np.arange(48), 1, epoch
                )
            ]
        ).tolist()
        for epoch in (0, 1)
    ]
    assert labels[0] != labels[1]


def test_an_epoch_is_the_same_whatever_came_before_and_however_many_readers():
    assert batches(3) == batches(3, threads=4)


def test_the_learning_rate_rises_then_falls_to_nothing():
    rates = [learning_rate(s, 100, peak=1.0, warmup=0.1) for s in range(100)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1.0
    assert 0 < rates[-1] < 0.001
    assert learning_rate(0, 1, peak=1.0, warmup=0.0) == 1.0


def test_without_strength_a_patch_is_only_flipped_and_turned():
    image = patch_set().read(7)
    rng = np.random.default_rng(0)
    seen = {moved(image, SIDE, None, 0.0, rng).tobytes() for _ in range(200)}
    turned = {
        np.ascontiguousarray(np.rot90(side, k)).tobytes()
        for side in (image, image[:, ::-1])
        for k in range(4)
    }
    assert seen == turned
    matrices, shifts = stain_changes(2, 0.0, rng)
    batch = torch.from_numpy(np.stack([image, image]))
    assert torch.allclose(restain(batch, matrices, shifts), batch.float(), atol=0.01)


def test_changes_of_stain_are_mild():
    image = torch.from_numpy(np.stack([patch_set().read(i) for i in range(40)]))
    changed = restain(image, *stain_changes(40, 1.0, np.random.default_rng(0)))
    assert changed.min() >= 0
    assert changed.max() <= 255
    difference = (changed - image).abs().mean(dim=(1, 2, 3))
    assert 1 < difference.mean() < 25
    assert difference.max() < 60


def test_scale_stays_within_a_tenth():
    # A bright square on black: its area in the window tells the scale.
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:60, 40:60] = 255
    rng = np.random.default_rng(0)
    areas = [moved(image, 64, 64.0, 1.0, rng).mean() / 255 * 64**2 for _ in range(200)]
    assert 400 / 1.1**2 * 0.95 < min(areas[1:]) < 400 * 0.9
    assert 400 * 1.1 < max(areas) < 400 / 0.9**2 * 1.05


def test_validation_sees_the_centre_at_the_encoders_scale():
    image = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
    assert np.array_equal(plain(image, 32, 32.0), image[16:48, 16:48])
    assert plain(image, 32, None).shape == (32, 32, 3)


def test_patches_at_another_um_px_are_cut_to_what_the_encoder_sees(tmp_path):
    patches = patch_set(side=64, mpp=0.5)
    settings = PretrainingSection(epochs=1, batch_size=8)
    run(tmp_path, patches, mpp=1.0, settings=settings)
    with pytest.raises(
        UserError, match="covers 32 um, but the encoder sees 32 px at 2 um/px = 64 um"
    ):
        run(tmp_path, patches, mpp=2.0, settings=settings)


def test_other_features_and_libraries_train_too(tmp_path):
    settings = PretrainingSection(epochs=1, batch_size=16)
    found = run(
        tmp_path,
        model="test_vit",
        feature="class_and_mean",
        arguments={"img_size": SIDE},
        settings=settings,
    )
    assert math.isfinite(found.history[0].train_loss)


def test_a_loss_that_is_not_finite_names_the_setting(tmp_path):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(UserError, match="lower pretraining.learning_rate"):
        run(tmp_path, settings=settings)


def test_a_backbone_that_does_not_take_the_size_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot take patches of 32 px"):
        run(tmp_path, library="torchvision", model="alexnet", feature="flattened")
