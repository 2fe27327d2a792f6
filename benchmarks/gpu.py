"""What a GPU gives: checks and figures of one card, in one command of under nine minutes.

    python benchmarks/gpu.py                          on a machine with a CUDA device
    python benchmarks/gpu.py --small                  small networks and slides, also on a CPU:
                                                      shows that the command works, and no figure
    python benchmarks/gpu.py --needs > needs.txt      the packages it needs beside torch, for
                                                      pip download --no-deps -d wheels -r needs.txt
    python benchmarks/gpu.py --wheels wheels          on a bare machine without a network, which
                                                      has only torch and torchvision

Each section is a process of its own with a limit of time; one that reaches it is stopped and keeps
the figures it has, and no section begins that could not end in `--minutes`. Weights are random.

- card: the device, its driver and memory, torch
- agreement: cosine of the GPU's features with the CPU's, per patch, at each precision
- alone: patches/s of the encoder with patches on the device, by batch size; peak memory; what
  copying batches there would add to it
- embed: patches/s of `her2 embed` from a pyramid, against the encoder alone (from the first tile to
  the last store; the start of Python is a row of its own); idle time of the device; by threads
- training: the same folds on the GPU and on the CPU, AUC and seconds
- two: two jobs on one card, against one
- memory: patches/s from JPEG tiles held in memory; decoding per core, and so the cores needed
- compile: what `torch.compile` takes and gives
"""

import argparse
import copy
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # of this folder, whether the project is installed

if TYPE_CHECKING:
    import torch

    from benchmarks.embed import Material, Run
    from her2.encoders.backbones import Encoder

NEEDED = (
    "cv2", "h5py", "huggingface_hub", "imagecodecs", "jinja2", "numcodecs", "numpy", "openslide",
    "PIL", "polars", "pyarrow", "pydantic", "safetensors", "sklearn", "tifffile", "timm", "tqdm",
    "typer", "yaml", "zarr",
)  # fmt: skip
"""Modules that the measured code imports, beside torch."""
ROOTS = (
    "h5py", "huggingface_hub", "imagecodecs", "Jinja2", "joblib", "numcodecs", "numpy",
    "opencv-python-headless", "openslide-bin", "openslide-python", "pillow", "polars", "pyarrow",
    "pydantic", "safetensors", "scikit-learn", "scipy", "tifffile", "timm", "tqdm", "typer",
    "PyYAML", "zarr",
)  # fmt: skip
"""Their distributions; what these require comes with them."""
BESIDE = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")
"""Distributions that the machine has, or that come with torch."""
JPEG_QUALITY, MPP = 80, 0.5
UNDONE = ("failed", "stopped")
"""What is said of a section that did not come to its end."""
COSINE_TARGET, RATIO_TARGET = 0.999, 0.9


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    encoders: tuple[str, ...]
    slow: tuple[str, ...]  # embedded from the shorter pyramid, in batches of at most 128
    compiled: tuple[str, ...]
    size: int  # px of a patch
    batches: tuple[int, ...]
    seconds: float  # for each figure of an encoder alone
    pyramid: tuple[int, int, int]  # px: width, height, height of the shorter one
    threads: tuple[int, ...]
    folds: tuple[int, int, int, int, int]  # slides, tiles, features, epochs, folds


FULL = Scale(
    ("vit_small_patch16_224", "vit_large_patch16_224", "vit_giant_patch14_dinov2", "resnet50"),
    ("vit_giant_patch14_dinov2",),
    ("vit_large_patch16_224", "resnet50"),
    224, (64, 128, 256, 512), 1.5, (25_000, 50_000, 10_000), (2, 4, 8),
    (200, 1000, 512, 12, 3),
)  # fmt: skip
SMALL = Scale(
    ("test_vit",), (), ("test_vit",), 160, (4, 8), 0.1, (1536, 1024, 512), (), (24, 40, 16, 2, 2),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A figure; `met` says whether it is in order, where that can be said."""

    section: str
    what: str
    figure: float | str
    unit: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Task:
    """What a section is given: how much, a folder, where its rows go, and those before."""

    section: str
    scale: Scale
    folder: Path
    rows: Path

    def say(self, what: str, figure: float | str, unit: str = "", met: bool | None = None) -> None:
        """Keep a figure at once, so that it is there even if the section is stopped."""
        with self.rows.open("a") as stream:
            stream.write(json.dumps(asdict(Row(self.section, what, figure, unit, met))) + "\n")

    def before(self, section: str, what: str) -> float | None:
        """Return a figure of an earlier section."""
        found = [r for r in read_rows(self.rows) if (r.section, r.what) == (section, what)]
        return float(found[-1].figure) if found else None

    def encoder(self, name: str) -> Path:
        """Return the folder of an encoder with random weights, made once."""
        from her2.config import EncoderSection
        from her2.config.jobs import EncoderSpec
        from her2.encoders.stage import materialise_encoder

        folder = self.folder / "encoders" / name
        if not (folder / "card.json").exists():
            section = EncoderSection(
                source="random", model=f"timm/{name}", mpp=MPP, size=self.scale.size
            )
            materialise_encoder(EncoderSpec(encoder=section, seed=1), folder)
        return folder

    def best(self, name: str) -> tuple[int, float | None]:
        """Return the fastest batch size of an encoder alone, and its patches/s if measured."""
        found = {b: self.before("alone", f"{name}, batches of {b}") for b in self.scale.batches}
        known = {batch: rate for batch, rate in found.items() if rate is not None}
        if not known:
            return 64, None
        batch = max(known, key=lambda one: known[one])
        return batch, known[batch]


def read_rows(path: Path) -> list[Row]:
    """Return the rows that sections have written."""
    if not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text().splitlines() if line.endswith("}")]


def card(task: Task) -> None:
    """Say what the machine is."""
    import torch

    from her2.core.hardware import allowed_cpus

    task.say("CPU cores of this process", allowed_cpus())
    task.say("Python, torch, CUDA", f"{platform.python_version()}, {torch.__version__}, "
             f"{torch.version.cuda or 'none'}")  # fmt: skip
    if not torch.cuda.is_available():
        task.say("device", "CPU alone: none of these figures is of a GPU", met=False)
        return
    found = torch.cuda.get_device_properties(0)
    task.say("device", found.name)
    task.say("memory", round(found.total_memory / 2**30, 1), "GiB")
    task.say("bfloat16 in hardware", str(torch.cuda.is_bf16_supported(including_emulation=False)))
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        task.say("driver", driver.read_text().splitlines()[0].split("Kernel Module")[-1].strip())


@functools.cache
def loaded(folder: Path) -> "Encoder":
    """Return an encoder; the largest takes a quarter of a minute to load."""
    from her2.encoders.stage import read_encoder

    return read_encoder(folder)[0]


def ready(task: Task, name: str, device: "torch.device", precision: str) -> "Callable[..., Any]":
    """Return the forward pass of an encoder as the stage computes it."""
    import torch

    from her2.embedding.inference import prepare
    from her2.encoders.device import DTYPES

    encoder = prepare(copy.deepcopy(loaded(task.encoder(name))), device, precision)
    dtype = DTYPES[precision]

    def forward(patches: "torch.Tensor") -> "torch.Tensor":
        enabled = dtype != torch.float32
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=enabled):
            return encoder(patches).float()

    return forward


def patches(count: int, size: int) -> "torch.Tensor":
    """Return drawn tissue, uint8 (count, size, size, 3), in pinned memory where there is a GPU."""
    import torch

    from benchmarks.embed import drawn

    image = drawn(1024)
    spots = torch.randint(0, 1024 - size, (count, 2), generator=torch.Generator().manual_seed(0))
    found = torch.stack(
        [torch.from_numpy(image[y : y + size, x : x + size].copy()) for x, y in spots.tolist()]
    )
    return found.pin_memory() if torch.cuda.is_available() else found


def device_and_precision() -> "tuple[torch.device, str]":
    """Return the device, and the half precision that `auto` would take there."""
    import torch

    from her2.encoders.device import resolve_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, resolve_precision("auto", device)


def waited() -> float:
    """Return the time when the device has done all its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def rate(work: Callable[[], object], count: int, seconds: float) -> float:
    """Return how many of `count` a second a repeated call does, after two calls to warm up."""
    for _ in range(2):
        work()
    begin, calls = waited(), 0
    while True:
        for _ in range(3):
            work()
        calls += 3
        if (now := waited()) - begin >= seconds:
            return calls * count / (now - begin)


def agreement(task: Task) -> None:
    """Compare features of the same patches on both devices and at each precision."""
    import torch

    device, half = device_and_precision()
    batch = patches(4, task.scale.size)
    for name in task.scale.encoders:
        reference = ready(task, name, torch.device("cpu"), "float32")(batch)
        for precision in dict.fromkeys(("float32", half)):
            found = ready(task, name, device, precision)(batch.to(device)).cpu()
            cosine = float(torch.cosine_similarity(found, reference).min())
            task.say(
                f"{name}, {device.type} {precision} with CPU float32", round(cosine, 6),
                "cosine", cosine >= COSINE_TARGET,
            )  # fmt: skip


def alone(task: Task) -> None:
    """Measure encoders with their patches on the device."""
    import torch

    device, precision = device_and_precision()
    for name in task.scale.encoders:
        forward = ready(task, name, device, precision)
        found: dict[int, float] = {}
        for size in task.scale.batches[: 2 if name in task.scale.slow else None]:
            given = patches(size, task.scale.size)
            try:
                batch = given.to(device)
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                speed = rate(lambda: forward(batch), size, task.scale.seconds)  # noqa: B023
            except torch.OutOfMemoryError:
                task.say(f"{name}, batches of {size}: memory", "does not fit")
                break
            found[size] = speed
            task.say(f"{name}, batches of {size}", round(speed, 1), f"patches/s, {precision}")
            if device.type == "cuda":
                peak = torch.cuda.max_memory_allocated() / 2**30
                task.say(f"{name}, batches of {size}: memory", round(peak, 2), "GiB at the peak")
        best = max(found, key=lambda one: found[one])
        given = patches(best, task.scale.size)
        copied = rate(
            lambda: given.to(device, non_blocking=True, copy=True),  # noqa: B023
            best, task.scale.seconds / 4,
        )  # fmt: skip
        share = (1 / copied) / (1 / copied + 1 / found[best])
        task.say(f"{name}: copying to the device, of both", round(100 * share, 2), "% of the time")


def compiling(task: Task) -> None:
    """Compile encoders as the stage does, and keep them if they are faster and give the same."""
    from her2.embedding.inference import compile_if_faster

    device, precision = device_and_precision()
    for name in task.scale.compiled:
        size, before = task.best(name)
        forward, batch = ready(task, name, device, precision), patches(size, task.scale.size)
        batch = batch.to(device)
        begin = waited()
        compiled = compile_if_faster(forward, batch, 0.05)
        task.say(f"{name}: compiling", round(waited() - begin, 1), "s")
        after = rate(lambda: compiled(batch), size, task.scale.seconds) if compiled else before  # noqa: B023
        task.say(
            f"{name}: compiled, of not", round(after / before, 3) if after and before else "-",
            "kept" if compiled else "not kept: other features, or no faster",
        )  # fmt: skip


def memory(task: Task) -> None:
    """Encode JPEG tiles that are held in memory, and measure how many cores decode enough."""
    import imagecodecs
    import numpy as np
    import torch

    from her2.core.hardware import allowed_cpus

    device, precision = device_and_precision()
    px = task.scale.size
    tiles = [imagecodecs.jpeg8_encode(one.numpy(), level=JPEG_QUALITY) for one in patches(256, px)]
    begin = time.thread_time()
    for tile in tiles:
        imagecodecs.jpeg8_decode(tile)
    per_core = len(tiles) / (time.thread_time() - begin)
    task.say("decoding JPEG tiles, per core", round(per_core), "tiles/s")
    for name in task.scale.encoders:
        size, lone = task.best(name)
        if lone is None or name in task.scale.slow:  # whatever feeds the others, feeds it
            continue
        needed = math.ceil(lone / per_core)
        task.say(f"{name}: cores that decode as fast as it encodes", needed, "cores")
        forward = ready(task, name, device, precision)
        forward(patches(size, px).to(device))
        crew = max(1, min(allowed_cpus(), 2 * needed))
        ready_batches: queue.Queue[torch.Tensor] = queue.Queue(4)
        stop = threading.Event()

        def decode(size: int = size, ready_batches: queue.Queue = ready_batches,
                   stop: threading.Event = stop, first: int = 0) -> None:  # fmt: skip
            while not stop.is_set():
                images = np.empty((size, px, px, 3), np.uint8)
                for row in range(size):
                    imagecodecs.jpeg8_decode(tiles[(first + row) % len(tiles)], out=images[row])
                batch = torch.from_numpy(images)
                while not stop.is_set():
                    try:
                        ready_batches.put(batch, timeout=0.1)
                        break
                    except queue.Full:
                        continue

        readers = [threading.Thread(target=decode) for _ in range(crew)]
        for reader in readers:
            reader.start()
        try:
            speed = rate(
                lambda: forward(ready_batches.get().to(device, non_blocking=True)),  # noqa: B023
                size, 2 * task.scale.seconds,
            )  # fmt: skip
        finally:
            stop.set()
            for reader in readers:
                reader.join()
        task.say(f"{name} from JPEG tiles in memory, {crew} cores", round(speed, 1), "patches/s")
        task.say(
            f"{name} from JPEG tiles in memory, of alone", round(speed / lone, 3), "",
            speed / lone >= RATIO_TARGET,
        )  # fmt: skip


def pyramid(task: Task, name: str, height: int, shift: int = 0) -> "Material":
    """Write and tile a pyramid, once."""
    import numpy as np

    from benchmarks.embed import drawn, tiled, write_pyramid

    folder = task.folder / "slides"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.tif"
    if not path.exists():
        image = np.roll(drawn(2048), shift, axis=1)
        write_pyramid(path, image, task.scale.pyramid[0], height)
    return tiled(folder, name, {name: path}, task.scale.size)


def embed(task: Task) -> None:
    """Run `her2 embed` and compare it with the encoder alone."""
    from benchmarks.embed import whole_command
    from her2.core.hardware import allowed_cpus

    cores = allowed_cpus()
    _, tall, short = task.scale.pyramid
    for number, name in enumerate(task.scale.encoders):
        slow = name in task.scale.slow
        material = pyramid(task, "short" if slow else "tall", short if slow else tall)
        size, lone = task.best(name)
        encoder = task.encoder(name)
        crews = [n for n in task.scale.threads if n < cores] if number == 0 else []
        for threads in (*crews, cores):
            run = whole_command(material, encoder, threads, size, "never")
            speed = run.patches / run.inside_seconds
            what = f"{name}, `her2 embed`, {threads} threads"
            task.say(what, round(speed, 1), f"patches/s of {run.patches:,}")
            task.say(f"{what}: idle", round(100 * run.idle, 1), "% of the device's time")
            if lone is not None:
                task.say(f"{what}: of alone", round(speed / lone, 3), "",
                         speed / lone >= RATIO_TARGET if threads == cores else None)  # fmt: skip
        task.say(f"{name}, `her2 embed`: start and end of the command",
                 round(run.seconds - run.inside_seconds, 1), "s")  # fmt: skip
        task.say(f"{name}, `her2 embed`: memory of the host", round(run.peak_mb), "MB at the peak")


def two(task: Task) -> None:
    """Run one job, then two at once on the same card."""
    from benchmarks.embed import whole_command
    from her2.core.hardware import allowed_cpus

    name = task.scale.encoders[0]
    _, tall, short = task.scale.pyramid
    height = max(short, tall // 2)
    materials = [pyramid(task, f"half{n}", height, 64 * n) for n in range(2)]
    size, _ = task.best(name)
    encoder, threads = task.encoder(name), max(1, allowed_cpus() // 2)
    one = whole_command(materials[0], encoder, threads, size, "never")
    found: list[Run] = []

    def work(material: "Material") -> None:
        found.append(whole_command(material, encoder, threads, size, "never"))

    crew = [threading.Thread(target=work, args=[material]) for material in materials]
    for job in crew:
        job.start()
    for job in crew:
        job.join()
    if len(found) < 2:
        raise SystemExit("one of two jobs on one device failed")
    single = one.patches / one.inside_seconds
    both = sum(run.patches / run.inside_seconds for run in found)
    task.say(f"{name}, one job of {threads} threads", round(single, 1), "patches/s")
    task.say(f"{name}, two such jobs at once", round(both, 1), "patches/s together")
    task.say("two jobs, of one", round(both / single, 3))


def training(task: Task) -> None:
    """Train the same folds on the device and on the CPU."""
    import numpy as np
    import torch
    from sklearn.metrics import roc_auc_score

    from her2.config import TrainingSection
    from her2.heads.abmil import AttentionSection
    from her2.mil.bags import Bag
    from her2.mil.model import predict
    from her2.mil.train import train_fold
    from her2.storage.features import FeatureStore

    slides, tiles, dimension, epochs, folds = task.scale.folds
    generator = np.random.default_rng(0)
    bags = []
    for n in range(slides):
        features = generator.normal(size=(tiles, dimension)).astype(np.float16)
        if n % 2:  # a direction of its own in a tenth of the tiles, too weak for all slides
            features[: tiles // 10, :4] += 0.5 + 0.5 * generator.random()
        store = FeatureStore(Path("/nowhere"), (features,), {"encoder": {"digest": "x"}})
        bags.append(Bag(f"s{n}", f"p{n}", f"k{n}", store, n % 2))
    options = TrainingSection(
        epochs=epochs, patience=epochs, bag_size=min(512, tiles), learning_rate=1e-3
    )
    head = AttentionSection(head="abmil", attention=64, gated=True)
    device, _ = device_and_precision()
    areas: dict[str, list[float]] = {}
    for where in (torch.device("cpu"), device):
        begin, probabilities = waited(), []
        kind = f"training on {where.type}" if where is device else "training on the CPU"
        for fold in range(folds):
            test = [bag for n, bag in enumerate(bags) if n // 2 % folds == fold]
            rest = [bag for n, bag in enumerate(bags) if n // 2 % folds != fold]
            trained = train_fold(
                rest[len(rest) // 5 * 2 // 2 :], rest[: len(rest) // 5 * 2 // 2], head=head,
                training=options, class_names=("a", "b"), seed=fold, device=where,
            )  # fmt: skip
            score = [float(predict(trained.model, bag).probabilities[1]) for bag in test]
            probabilities.append(roc_auc_score([bag.label for bag in test], score))
        areas[kind] = probabilities
        task.say(f"{kind}: seconds an epoch", round((waited() - begin) / folds / epochs, 3), "s")
        task.say(f"{kind}: AUC, mean of {folds} folds", round(float(np.mean(probabilities)), 4))
    first, last = (np.array(one) for one in (areas["training on the CPU"], areas[kind]))
    test_slides = slides // folds
    # The standard error of an AUC of one fold near 0.5 to 0.9 is below this (Hanley and McNeil).
    noise = math.sqrt((test_slides + 1) / (3 * (test_slides // 2) ** 2))
    apart = float(np.abs(first - last).max())
    task.say("AUC of a fold, GPU and CPU at most apart", round(apart, 4), f"noise {noise:.3f}",
             apart <= noise)  # fmt: skip


SECTIONS: dict[str, tuple[Callable[[Task], None], int]] = {
    "card": (card, 30),
    "agreement": (agreement, 110),
    "alone": (alone, 100),
    "embed": (embed, 170),
    "training": (training, 60),
    "two": (two, 60),
    "memory": (memory, 60),
    "compile": (compiling, 100),
}
"""What is measured, in this order, with its limit in seconds; later ones use figures of earlier.

Together they may take longer than there is time; what matters most comes first.
"""


def lacking(wheels: Path | None, folder: Path) -> dict[str, str]:
    """Return the environment with packages from `wheels`, or exit with what is missing."""
    environment = dict(os.environ)
    if wheels is not None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        files = [str(path) for path in sorted(wheels.glob("*.whl"))]
        subprocess.run([*command, "--target", str(folder / "packages"), *files], check=True)
        sys.path.append(str(folder / "packages"))
        places = [str(HERE.parent), str(folder / "packages"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    missing = [name for name in ("torch", *NEEDED) if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"not installed: {', '.join(missing)}. Where the project is installed, `python "
            "benchmarks/gpu.py --needs > needs.txt` and `pip download --no-deps -d wheels -r "
            "needs.txt`; then bring the folder and add --wheels wheels."
        )
    return environment


def needs() -> Iterator[str]:
    """Yield the pinned packages that the benchmark needs beside torch, as installed here."""
    from packaging.requirements import Requirement

    seen: dict[str, str] = {}
    todo = list(ROOTS)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen or BESIDE.fullmatch(name):
            continue
        found = importlib.metadata.distribution(name)
        seen[name] = found.version
        for text in found.requires or ():
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                todo.append(one.name)
    yield from (f"{name}=={version}" for name, version in sorted(seen.items()))


def measure(options: argparse.Namespace, folder: Path, environment: dict[str, str]) -> list[Row]:
    """Run the sections one after the other, each in time."""
    rows = folder / "rows.jsonl"
    end = time.monotonic() + 60 * options.minutes
    for name, (_, full) in SECTIONS.items():
        if options.only and name not in options.only:
            continue
        left = end - time.monotonic()
        limit = left if options.small else min(left, full)  # a busy CPU may take any time
        task = Task(name, SMALL if options.small else FULL, folder, rows)
        if left < min(20, full):
            task.say("left out", "no time left", met=False)
            continue
        command = [sys.executable, str(HERE / "gpu.py"), "--section", name, "--folder", str(folder)]
        begin = time.monotonic()
        with (folder / "log.txt").open("a+") as log:
            child = subprocess.Popen(
                [*command, *(["--small"] if options.small else [])], stdout=log, stderr=log,
                env=environment, start_new_session=True,
            )  # fmt: skip
            try:
                code = child.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if child.poll() is None:  # with the commands that it has started
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        if code is None:
            task.say("stopped", "limit of time", f"after {limit:.0f} s", met=False)
        elif code:
            last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
            task.say("failed", last[0][:200] if last else f"exit status {code}", met=False)
        task.say("seconds of this section", round(time.monotonic() - begin, 1), "s")
    return read_rows(rows)


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| section | | figure | | |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        met = {None: "", True: "yes", False: "NO"}[row.met]
        lines.append(f"| {row.section} | {row.what} | {row.figure} | {row.unit} | {met} |")
    return "\n".join(lines)


def status(rows: list[Row], *, small: bool) -> int:
    """Return the exit status; in small, figures say nothing, but each section has to end."""
    return int(any(row.met is False and (not small or row.what in UNDONE) for row in rows))


def main() -> int:
    """Measure, print one table and write JSON; the exit status says whether all was in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny, also on a CPU: does it work?")
    parser.add_argument("--minutes", type=float, default=8.5, help="of the whole command")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file for the figures")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these sections alone")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that the machine lacks")
    parser.add_argument("--needs", action="store_true", help="list the wheels, and end")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.needs:
        print("\n".join(needs()))
        return 0
    if options.section:
        rows = options.folder / "rows.jsonl"
        scale = SMALL if options.small else FULL
        SECTIONS[options.section][0](Task(options.section, scale, options.folder, rows))
        return 0
    # In memory where there is room, so that no disk is measured.
    shared = Path("/dev/shm")
    room = os.statvfs(shared) if shared.is_dir() else None
    roomy = room is not None and room.f_bavail * room.f_frsize > 16 << 30
    with tempfile.TemporaryDirectory(prefix="her2-gpu-", dir=shared if roomy else None) as made:
        environment = lacking(options.wheels, Path(made))
        import torch

        if not torch.cuda.is_available() and not options.small:
            sys.exit("no CUDA device; --small runs on a CPU and shows that the command works.")
        rows = measure(options, Path(made), environment)
    print(table(rows))
    options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(f"\nwritten to {options.json}")
    return status(rows, small=options.small)


if __name__ == "__main__":
    sys.exit(main())
