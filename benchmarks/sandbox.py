"""Programs per second in the sandbox, against a bare `python -c` per program.

    python benchmarks/sandbox.py --output benchmarks/results/sandbox-cpu.json

`cold`: the time from opening a new pool's first interpreter to its first answer. `programs`: one-cell programs through
`Sandbox.run_all`, every one in a fresh interpreter. `warm`: one cell after another in one interpreter. `bare`: a
subprocess `python -c` for each program, as many at once, with nothing isolated (`-S -E`, as lean as the sandbox's own).
Rounds take turns; each figure is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vs_trl import machine

from prefopt.sandbox import Sandbox, isolation

PROGRAM = "total = 0\nfor n in range(100):\n    total += n * n\nprint(total)"
ANSWER = "328350\n"


def main() -> None:
    """Measure all in turns, print the table, write the JSON."""
    arguments = parse_arguments()
    measures: dict[str, Callable[[], float]] = {
        "cold_start_seconds": cold_start,
        "programs_per_second": lambda: programs(arguments.programs, arguments.workers),
        "warm_cells_per_second": lambda: warm_cells(arguments.cells),
        "bare_python_per_second": lambda: bare(arguments.programs, arguments.workers),
    }
    seen: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(arguments.rounds):
        for name, measure in measures.items():
            seen[name].append(measure())
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
    results = {name: statistics.median(values) for name, values in seen.items()}
    results["relative_to_bare"] = results["programs_per_second"] / results["bare_python_per_second"]
    for name, value in results.items():
        print(f"{name:24} {value:10.4g}")
    if arguments.output:
        facts = {
            "machine": {**machine("cpu", ("prefopt",)), "python": sys.version.split()[0]},
            "isolation": isolation()._asdict(),
            "settings": {k: v for k, v in vars(arguments).items() if k != "output"},
            "results": results,
            "rounds": seen,
        }
        Path(arguments.output).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=200, help="per round")
    parser.add_argument("--cells", type=int, default=2000, help="per round, in one interpreter")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="JSON file for the results")
    return parser.parse_args()


def cold_start() -> float:
    """Seconds until the first answer of a pool that has nothing started yet."""
    isolation()  # once per process, not per pool
    with Sandbox(workers=1) as pool:
        start = time.perf_counter()
        with pool.open() as interpreter:
            interpreter.run("1")
            return time.perf_counter() - start


def programs(count: int, workers: int) -> float:
    with Sandbox(workers=workers) as pool:
        start = time.perf_counter()
        results = pool.run_all([[PROGRAM]] * count)
        seconds = time.perf_counter() - start
    if any(cells[0].output != ANSWER for cells in results):
        raise SystemExit("a program gave a wrong answer")
    return count / seconds


def warm_cells(count: int) -> float:
    with Sandbox(workers=1) as pool, pool.open() as interpreter:
        interpreter.run(PROGRAM)
        start = time.perf_counter()
        for _ in range(count):
            interpreter.run(PROGRAM)
        return count / (time.perf_counter() - start)


def bare(count: int, workers: int) -> float:
    command = [sys.executable, "-S", "-E", "-c", PROGRAM]

    def one(_: int) -> None:
        if subprocess.run(command, capture_output=True, text=True, check=True).stdout != ANSWER:
            raise SystemExit("a program gave a wrong answer")

    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(count)))
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
