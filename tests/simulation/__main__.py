"""Run many seeds: ``python -m tests.simulation 100000``, or one: ``--first 4711 --trace 1``."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

from .run import Run, failure_of, failures, undisturbed

AT_ONCE = 500


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("count", type=int, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    options = parser.parse_args()
    if options.trace:
        for seed in range(options.first, options.first + options.count):
            _trace(seed)
        return
    began = time.monotonic()
    done = broken = 0
    starts = range(options.first, options.first + options.count, AT_ONCE)
    chunks = [range(start, min(start + AT_ONCE, options.first + options.count)) for start in starts]
    with ProcessPoolExecutor(options.jobs) as pool:
        for chunk, reports in zip(chunks, pool.map(_reports, chunks), strict=True):
            done += len(chunk)
            broken += len(reports)
            print(*reports, sep="\n\n", end="\n\n" if reports else "")
            if done % 10_000 == 0 or done == options.count:
                took = time.monotonic() - began
                print(f"{done} seeds, {broken} broken, {took:.0f} s", flush=True)
    sys.exit(1 if broken else 0)


def _reports(seeds: Iterable[int]) -> list[str]:
    gc.freeze()  # imported modules need not be scanned by each garbage collection
    return [report for _, report in failures(seeds) if report]


def _trace(seed: int) -> None:
    with undisturbed() as place:
        run = Run(seed, place)
        report = failure_of(run)
    print(run.scenario)
    for at, *what in run.world.trace:
        print(f"{at:.6f}", *what)
    print(report.partition("\n")[0] if report else f"seed {seed}: ok")


if __name__ == "__main__":
    main()
