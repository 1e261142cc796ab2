"""The floors of the house hold: each planted violation fails the linter that `make lint` calls."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=tree, env={"PYTHONPATH": str(tree)}, capture_output=True, text=True, timeout=120)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "visionloop", tmp_path / "visionloop", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_house_as_it_is(tree: Path) -> None:
    found = lint(tree)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("stages/gate.py", "import airflow"),
        ("training/loop.py", "import ray"),
        ("data/splits.py", "import visionloop.stores.objects"),
        ("monitoring/decision.py", "import boto3"),
        ("stages/train.py", "import visionloop.stages.evaluate"),
        ("errors.py", "import visionloop.records"),
        ("stores/ledger.py", "import visionloop.stages.gate"),
    ],
)
def test_a_planted_violation_fails(tree: Path, file: str, planted: str) -> None:
    path = tree / "visionloop" / file
    path.write_text(f"{path.read_text()}\n\ndef planted() -> None:\n    {planted}\n")
    found = lint(tree)
    assert found.returncode == 1, found.stdout
    assert "BROKEN" in found.stdout
