"""Measures what Airflow pays to read the DAG files of 20 projects: seconds beyond importing Airflow, and heavy imports.

python tools/bench_dag_parse.py
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = 20
ROUNDS = 5
GOAL_SECONDS = 1.0
HEAVY = ("torch", "ray", "mlflow", "great_expectations", "evidently", "pandas", "numpy", "lance")

PROBE = """
import json, runpy, sys, time
from pathlib import Path
began = time.perf_counter()
import airflow.sdk, airflow.dag_processing.dagbag
imported, before = time.perf_counter(), set(sys.modules)
stubs = sorted(Path(sys.argv[1]).glob("*.py"))
first = None
dags = 0
for stub in stubs:
    found = runpy.run_path(str(stub))
    dags += sum(type(value).__name__ == "DAG" for value in found.values())
    first = first or time.perf_counter()
ended = time.perf_counter()
heavy = [name for name in sys.argv[2].split(",") if name in sys.modules]
print(json.dumps({
    "airflow_seconds": imported - began,
    "parse_seconds": ended - imported,
    "first_seconds": first - imported,
    "dags": dags,
    "stubs": len(stubs),
    "heavy": [name for name in heavy if name not in before],
    "heavy_by_airflow": [name for name in heavy if name in before],
}))
"""


def main() -> None:
    """Generate, measure in fresh processes, print, write `.visionloop/bench/dag_parse.json`."""
    with tempfile.TemporaryDirectory(prefix="visionloop-bench-") as name:
        folder = Path(name)
        stubs = make_projects(folder)
        rounds = [probe(folder, stubs) for _ in range(ROUNDS)]
    assert all(found["dags"] == 4 * PROJECTS for found in rounds), rounds
    report = {
        "measures": measures(rounds),
        "projects": PROJECTS,
        "rounds": ROUNDS,
        "imported_by_airflow_itself": sorted({name for found in rounds for name in found["heavy_by_airflow"]}),
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("apache-airflow", "visionloop")},
    }
    out = Path(os.environ.get("VISIONLOOP_HOME", ROOT / ".visionloop")) / "bench" / "dag_parse.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1))
    show(report, out)


def make_projects(folder: Path) -> Path:
    """20 project folders after the example, and their stubs as the stack writes them."""
    example = (ROOT / "projects" / "fashion" / "project.yaml").read_text()
    for number in range(PROJECTS):
        path = folder / "projects" / f"line-{number:02}" / "project.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(example.replace("project: fashion", f"project: line-{number:02}", 1))
    command = [sys.executable, str(ROOT / "dags" / "visionloop_dags" / "write_stubs.py")]
    out = folder / "dags"
    subprocess.run([*command, "--projects", str(folder / "projects"), "--out", str(out)], check=True)
    return out


def probe(folder: Path, stubs: Path) -> dict[str, Any]:
    """One fresh process: import Airflow, then read all stubs."""
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "dags", ROOT / "plugins"))
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    command = [sys.executable, "-c", PROBE, str(stubs), ",".join(HEAVY)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measures(rounds: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Medians over the rounds; the imports of all rounds together."""

    def median(key: str) -> float:
        return round(statistics.median(found[key] for found in rounds), 3)

    parse = median("parse_seconds")
    heavy = sorted({name for found in rounds for name in found["heavy"]})
    return {
        "parse": {"value": parse, "goal": GOAL_SECONDS, "holds": parse < GOAL_SECONDS, "unit": "s"},
        "heavy_imports": {"value": len(heavy), "goal": 0, "holds": not heavy, "unit": "modules", "names": heavy},
        "first_file": {"value": median("first_seconds"), "goal": None, "holds": True, "unit": "s"},
        "airflow_import": {"value": median("airflow_seconds"), "goal": None, "holds": True, "unit": "s"},
    }


def show(report: dict[str, Any], out: Path) -> None:
    """The table."""
    print(f"{PROJECTS} projects, {4 * PROJECTS} DAGs, median of {ROUNDS} fresh processes on {os.cpu_count()} cores")
    for name, found in report["measures"].items():
        goal = "" if found["goal"] is None else f"goal {found['goal']:g}, {'holds' if found['holds'] else 'MISSED'}"
        print(f"  {name:<16}{found['value']:>8g} {found['unit']:<8}{goal}")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
