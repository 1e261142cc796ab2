"""Measure the embedded servers: warm start to all healthy, and their memory when nobody asks anything.

Writes `.visionloop/bench/stack.json`; a measurement, not a test: exits 0 whether or not the goals hold.
"""

import json
import os
import platform
import shutil
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from visionloop import stack
from visionloop.settings import load_settings

STARTS = 3
SETTLED_MIB = 20.0
GOALS = {"warm_up_seconds": (60.0, "s"), "idle_memory_mib": (4096.0, "MiB")}


def main() -> None:
    """Start cold once, then warm several times; measure memory when it has stopped changing."""
    bench = Path(".visionloop/bench").absolute()
    home = bench / "stack-home"
    os.environ["VISIONLOOP_HOME"] = str(home)
    shutil.rmtree(home, ignore_errors=True)
    try:
        cold, warm = started(), []
        for _ in range(STARTS):
            stack.down(load_settings())
            warm.append(started())
        memory, services = settled()
    finally:
        stack.down(load_settings())
        shutil.rmtree(home, ignore_errors=True)
    figures = {"warm_up_seconds": statistics.median(warm), "idle_memory_mib": memory}
    measures = {
        name: {
            "value": round(value, 1),
            "goal": GOALS[name][0],
            "holds": value <= GOALS[name][0],
            "unit": GOALS[name][1],
        }
        for name, value in figures.items()
    }
    measures["cold_up_seconds"] = {"value": round(cold, 1), "goal": None, "holds": None, "unit": "s"}
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report = {"measures": measures, "warm_starts": warm, "memory_mib": services, "machine": machine}
    (bench / "stack.json").write_text(json.dumps(report, indent=1) + "\n")
    show(measures, services)


def started() -> float:
    """Seconds from `up` to all healthy."""
    began = time.monotonic()
    stack.up(load_settings())
    return time.monotonic() - began


def settled() -> tuple[float, dict[str, float]]:
    """Memory of all services in MiB, once two looks ten seconds apart agree (two minutes at most)."""
    before = float("inf")
    for _ in range(12):
        services = {service.name: service.rss_mb or 0.0 for service in stack.status(load_settings()).services}
        total = sum(services.values())
        if abs(total - before) < SETTLED_MIB:
            break
        before = total
        time.sleep(10)
    return total, services


def show(measures: dict[str, dict[str, object]], services: dict[str, float]) -> None:
    """The table that a person reads."""
    table = Table("measure", "value", "goal", "holds")
    for name, measure in measures.items():
        table.add_row(name, f"{measure['value']} {measure['unit']}", str(measure["goal"] or ""), str(measure["holds"]))
    console = Console()
    console.print(table)
    console.print(", ".join(f"{name} {memory:.0f} MiB" for name, memory in services.items()))


if __name__ == "__main__":
    main()
