"""Writes one small DAG file per project into Airflow's DAG folder, so that a broken project file breaks no other.

python dags/visionloop_dags/write_stubs.py --projects projects --out .visionloop/airflow/dags
"""

import argparse
from pathlib import Path

from visionloop.atomic import write_whole

MARK = "# Written by visionloop's write_stubs.py: an Airflow DAG file per project. Changes here are lost."
STUB = """{mark}
from visionloop_dags.factory import project_dags

globals().update(project_dags({path!r}))
"""


def write_stubs(projects: Path, out: Path) -> list[Path]:
    """One file for each `<projects>/<name>/project.yaml`; removes those of projects that are gone, touches no other."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = {out / f"{path.parent.name}.py": path for path in sorted(projects.absolute().glob("*/project.yaml"))}
    for stub, path in wanted.items():
        text = STUB.format(mark=MARK, path=str(path))
        if not stub.is_file() or stub.read_text() != text:
            write_whole(stub, text, mode=0o644)  # Airflow reads at any moment
    for stale in set(out.glob("*.py")) - set(wanted):
        if stale.read_text().startswith(MARK):
            stale.unlink()
    return list(wanted)


def main() -> None:
    """Parse the arguments, write, say how many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projects", type=Path, required=True, help="folder with <name>/project.yaml")
    parser.add_argument("--out", type=Path, required=True, help="Airflow's DAG folder")
    arguments = parser.parse_args()
    written = write_stubs(arguments.projects, arguments.out)
    print(f"{len(written)} project files in {arguments.out}")


if __name__ == "__main__":
    main()
