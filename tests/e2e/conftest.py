"""The demo, run once as a user runs it, with its servers left up for the tests that look at what it left."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import kill_all
from visionloop.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".visionloop" / "e2e"


@dataclass(frozen=True)
class Demo:
    """What the demo printed and left."""

    returncode: int
    output: str
    report: dict[str, Any]
    settings: Settings


@pytest.fixture(scope="session")
def demo() -> Iterator[Demo]:
    """`visionloop demo --keep`, in a home of the tests' own."""
    visionloop = str(Path(sys.executable).with_name("visionloop"))
    environment = {**os.environ, "VISIONLOOP_HOME": str(HOME)}
    done = subprocess.run(
        [visionloop, "demo", "--keep"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500
    )
    home = HOME / "demo"
    report = home / "report.json"
    try:
        yield Demo(
            done.returncode,
            done.stdout + done.stderr,
            json.loads(report.read_text()) if report.is_file() else {},
            load_settings({"VISIONLOOP_HOME": str(home), "VISIONLOOP_PROJECTS": str(ROOT / "projects")}),
        )
    finally:
        kill_all(Settings(home=home))
        subprocess.run([visionloop, "--home", str(home), "down"], cwd=ROOT, timeout=120, check=False)
        if done.returncode == 0:
            shutil.rmtree(HOME, ignore_errors=True)
