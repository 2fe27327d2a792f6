"""Stage 2, report: speed of embedding, its bottleneck, and what to change about it.

It comes from the receipts in the feature stores, so it describes the machines and their load at
the time. These are the only figures on the page that differ between runs with equal results.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from her2.report.format import count
from her2.report.results import Results
from her2.report.section import Section

PARTS = ("reading", "waiting", "encoding", "writing")
LIMITING = 0.35
"""Share of the workers' time from which a part is worth a change, whatever the encoder takes."""

Receipt = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ThroughputRow:
    """One encoder on one kind of device; shares are of its workers' time.

    On a CPU every core reads and encodes. On CUDA, reading runs in parallel and is not part of
    the device's time, and `waiting` is the time in which the device was idle.
    """

    encoder: str
    device: str
    precision: str
    threads: str
    slides: int
    patches: int
    patches_per_second: float
    hours: float
    reading: float
    waiting: float
    encoding: float
    writing: float
    cold: int
    bottleneck: str
    advice: str

    @property
    def share_text(self) -> str:
        """Return `encoding 92%, reading 7%, writing 1%`, the largest first."""
        parts = sorted(((getattr(self, name), name) for name in PARTS), reverse=True)
        return ", ".join(f"{name} {share:.0%}" for share, name in parts if share >= 0.005)

    @property
    def hours_text(self) -> str:
        """Return device hours as `0.02` or `31`."""
        return f"{self.hours:,.0f}" if self.hours >= 10 else f"{self.hours:.2g}"


def throughput(results: Results) -> list[ThroughputRow]:
    """Return one row per encoder and device, in the config's order; none without receipts."""
    found = []
    for name, receipts in results.receipts.items():
        groups: dict[tuple[str, str], list[Receipt]] = {}
        for receipt in receipts:
            groups.setdefault((receipt["device"], receipt["precision"]), []).append(receipt)
        looked_at = sum(_patches(receipt) for receipt in receipts)
        tiles = sum(e.tiles * (1 + len(e.views)) for e in results.features[name].values())
        share = tiles / looked_at if looked_at else 0.0
        found += [_row(name, group, share) for _, group in sorted(groups.items())]
    return found


def throughput_table(results: Results) -> pl.DataFrame | None:
    """Return the rows as a table for the CSV file; None where nothing was recorded."""
    rows = [asdict(row) for row in throughput(results)]
    return pl.DataFrame(rows).drop("advice") if rows else None


def _row(encoder: str, receipts: list[Receipt], scale: float) -> ThroughputRow:
    """Return the row of one encoder and device.

    `scale` is the number of patches of all slides of the encoder over those of its receipts.
    """
    on_cpu = receipts[0]["on_cpu"]
    spent = {part: sum(r[f"seconds_{part}"] for r in receipts) for part in PARTS}
    if not on_cpu:  # these run in parallel with the device
        spent |= {"reading": 0.0, "writing": 0.0}
    total = sum(spent.values())
    busy_seconds = sum(
        sum(r[f"seconds_{part}"] for part in PARTS if spent[part]) / r["workers"] for r in receipts
    )
    patches = sum(map(_patches, receipts))
    shares = {part: seconds / total if total else 0.0 for part, seconds in spent.items()}
    limit, advice = _advice(shares, receipts)
    return ThroughputRow(
        encoder=encoder,
        device=receipts[0]["device"],
        precision=receipts[0]["precision"],
        threads=_span(r["threads"] for r in receipts),
        slides=len(receipts),
        patches=patches,
        patches_per_second=patches / busy_seconds if busy_seconds else 0.0,
        hours=busy_seconds * scale / 3600,
        **shares,
        cold=sum(r["cold"] is True for r in receipts),
        bottleneck=limit,
        advice=advice,
    )


def _patches(receipt: Receipt) -> int:
    """Return how many patches a receipt is of: the slide's tiles, in each view made with them."""
    return int(receipt["tiles"] * receipt.get("views", 1))


def _advice(shares: Mapping[str, float], receipts: list[Receipt]) -> tuple[str, str]:
    """Return the bottleneck and what to change about it."""
    first = receipts[0]
    cold = 2 * sum(r["cold"] is True for r in receipts) > len(receipts)
    plain = 2 * sum(r["reader"] == "jpeg" for r in receipts) > len(receipts)
    changed = any(r.get("views", 1) > 1 for r in receipts)
    if changed and max(shares["waiting"], shares["reading"]) >= LIMITING:
        return "reading", (
            "Reading includes the random changes of augmented views, which the CPU makes. Give the "
            "job more threads, or lower `augmentations`."
        )
    if shares["waiting"] >= LIMITING:
        return "reading", (
            "The device waits for tiles. Give the job more threads"
            + (", and put the slides on a faster disk (they came from storage)" if cold else "")
            + "."
        )
    if shares["reading"] >= LIMITING:
        if cold:
            return "storage", "The slides came from storage. First copy them to a faster disk."
        if not plain:
            return "reading", (
                "The slides' format has to be read by OpenSlide. More threads help, or slides "
                "converted to JPEG TIFF."
            )
        return "reading", (
            "Tiles are resampled. An um/px that the slides' pyramid has (0.25, 0.5, 1) is read "
            "without resampling; otherwise, more threads help."
        )
    if shares["writing"] >= LIMITING:
        return "writing", "The cache is on a slow disk. Put `cache` on a faster one."
    if first["on_cpu"]:
        text = "A GPU, or more cores for the job (threads), would speed this up"
        if first["precision"] == "float32":
            text += ", and so would a CPU with bfloat16 (AVX-512 BF16, AMX), by about three times"
        return "encoder", text + "."
    if first["precision"] == "float32":
        return "encoder", "`precision: auto` would compute in half precision on this device."
    if not any(r["compiled"] for r in receipts):
        return "encoder", (
            "The device is busy. `embedding.compile: always` may help a little; running more jobs "
            "at once on more devices helps further."
        )
    return "encoder", "The device is busy. Running more jobs at once on more devices would help."


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return count(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


SECTION = Section(
    anchor="throughput",
    title="Throughput and cost",
    short_title="Throughput",
    order=90,
    collect=throughput,
    tables={"throughput": throughput_table},
)
