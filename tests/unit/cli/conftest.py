"""The command line as a terminal runs it: arguments in, exit code and text out, in a home of its own."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from visionloop.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which nothing runs, and a folder of projects that is empty."""
    monkeypatch.setenv("VISIONLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VISIONLOOP_PROJECTS", str(tmp_path / "projects"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("status --json")`, through the same entry point as the installed command."""

    def run_it(command: str, *more: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["visionloop", *shlex.split(command), *more])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0) if not isinstance(end.code, str) else 1
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return Ran(code, said.out, said.err)

    return run_it


PROJECT = """\
project: p
task:
  classes: [a, b]
  image: {height: 8, width: 8, channels: 1}
suite:
  scenarios:
    - {name: overall, at_least: 0.5}
release: {approval: required, approvers: [ann, bob]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The file of project `p`."""
    path = tmp_path / "projects" / "p" / "project.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(PROJECT)
    return path
