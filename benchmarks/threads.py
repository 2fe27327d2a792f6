"""Waiting strategies of torch threads: training speed alone and beside a busy process.

    python benchmarks/threads.py                    two threads and one busy process, two minutes
    python benchmarks/threads.py --threads 8 --busy 4
    python benchmarks/threads.py --seconds 0.2 --rounds 1 --size 32    quick check that it runs

Runs training steps (ResNet-18, patches in memory) in processes whose threads wait for each other in
different ways: GNU OpenMP's default, sleeping at once, bounded busy waiting (`her2` sets
SPIN_COUNT), and a single thread without waiting. The processes take turns of a few seconds, one at
a time. Ratios compare two turns of the same round, so that other load on the machine affects both.
Steps per CPU second show the cost of busy waiting independently of the load.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from her2.core.hardware import SPIN_COUNT

OWN = "OpenMP's own"
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def work(threads: int, size: int, batch_size: int) -> None:
    """Train for the number of seconds in each line of the standard input; print steps and times."""
    import timm
    import torch

    from her2.encoders.backbones import Encoder
    from her2.pretraining.loop import Classifier, train_epoch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    backbone = timm.create_model("resnet18", num_classes=0)
    encoder = Encoder(backbone, feature="pooled", mean=(0.5,) * 3, std=(0.5,) * 3)
    model = Classifier(encoder, 512, 4)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    optimiser = torch.optim.AdamW(model.parameters())
    patches = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8)
    batches = [(patches, torch.randint(0, 4, (batch_size,)), None)]

    def step() -> None:
        cpu = torch.device("cpu")
        train_epoch(model, optimiser, batches, [1e-4], device=cpu, dtype=torch.float32, name="")

    step()
    print("ready", flush=True)
    for line in sys.stdin:
        steps, wall, cpu = 0, time.perf_counter(), time.process_time()
        while steps == 0 or time.perf_counter() - wall < float(line):
            step()
            steps += 1
        print(steps, time.perf_counter() - wall, time.process_time() - cpu, flush=True)


class Worker:
    """A process that trains on request."""

    def __init__(self, environment: dict[str, str], *arguments: object) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", *map(str, arguments)],
            env=kept | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Wait for a line that the process prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def train(self, seconds: float) -> tuple[float, float]:
        """Return steps per second and per CPU second."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        steps, wall, cpu = map(float, self.line().split())
        return steps / wall, steps / cpu


def measure(options: argparse.Namespace) -> dict[str, list[list[tuple[float, float]]]]:
    """Return the turns of each strategy, alone and beside busy processes."""
    arrangements: dict[str, tuple[dict[str, str], int]] = {OWN: ({}, options.threads)}
    arrangements["asleep"] = ({"OMP_WAIT_POLICY": "PASSIVE"}, options.threads)
    for turns in options.spin:
        arrangements[f"{turns} turns"] = ({"GOMP_SPINCOUNT": str(turns)}, options.threads)
    arrangements["one thread"] = ({}, 1)
    busy: list[subprocess.Popen[Any]] = []
    workers: dict[str, Worker] = {}
    try:
        for _ in range(options.busy):
            busy.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            busy[-1].send_signal(signal.SIGSTOP)
        for name, (environment, threads) in arrangements.items():
            workers[name] = Worker(environment, threads, options.size, options.batch_size)
            assert workers[name].line() == "ready\n"  # so that they start one after the other
        found: dict[str, list[list[tuple[float, float]]]] = {name: [[], []] for name in workers}
        for _ in range(options.rounds):
            for place, what in enumerate((signal.SIGSTOP, signal.SIGCONT)):
                for process in busy:
                    process.send_signal(what)
                for name, worker in workers.items():
                    found[name][place].append(worker.train(options.seconds))
            for process in busy:
                process.send_signal(signal.SIGSTOP)
        return found
    finally:
        for process in [*busy, *(worker.process for worker in workers.values())]:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=1, help="number of busy processes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--size", type=int, default=96, help="side of the patches in px")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--spin", type=int, nargs="+", default=[SPIN_COUNT])
    parser.add_argument("--work", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(*options.work)
        return
    found = measure(options)
    print(
        f"{options.threads} threads, {options.busy} busy processes, {os.cpu_count()} CPUs, load "
        f"{os.getloadavg()[0]:.1f}; medians of {options.rounds} turns"
    )
    print(f"{'':14}{'alone':^34}{'beside busy processes':^34}")
    print(f"{'waiting':14}" + f"{'steps/s':>10}{'ratio':>10}{'/CPU s':>14}" * 2)
    for name, places in found.items():
        cells = ""
        for turns, own in zip(places, found[OWN], strict=True):
            rate, per_cpu = (statistics.median(values) for values in zip(*turns, strict=True))
            pairs = zip(turns, own, strict=True)
            ratio = statistics.median(mine[0] / other[0] for mine, other in pairs)
            cells += f"{rate:10.2f}{ratio:10.2f}{per_cpu:14.2f}"
        print(f"{name:14}{cells}")


if __name__ == "__main__":
    main()
