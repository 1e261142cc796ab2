"""What `visionloop serving tune` writes to the project file, and what it says."""

import json
from pathlib import Path

import pytest

from visionloop.cli.serving import _write
from visionloop.project import load_project
from visionloop.records import TunedPoint, Tuning

from .conftest import Run

TEXT = """\
project: p  # ours
task: { classes: [a, b], image: { height: 8, width: 8, channels: 1 } }
suite: { scenarios: [{ name: all }] }
serving:
  threads: 1  # measured by hand
release: { approval: automatic }
"""


def point(threads: int) -> TunedPoint:
    measured = {"images_per_second": 9.0, "p50_ms": 1.0, "p99_ms": 2.0, "failures": 0}
    return TunedPoint(instances=1, threads=threads, queue_delay_us=0, **measured)


def test_the_choice_is_written_once_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "p" / "project.yaml"
    path.parent.mkdir()
    path.write_text(TEXT)
    path.chmod(0o664)
    assert not _write(path, point(1))  # so it is served already
    assert path.read_text() == TEXT
    assert _write(path, point(2))
    assert path.read_text() == TEXT.replace("threads: 1", "threads: 2").replace(
        "hand\n", "hand\n  instances: 1\n  queue_delay_us: 0\n"
    )
    assert load_project(path).serving.threads == 2
    assert path.stat().st_mode & 0o777 == 0o664
    assert not _write(path, point(2))


@pytest.mark.parametrize(
    ("airflow", "page"),
    [
        ("http://airflow:8080/", "http://airflow:8080/visionloop/pages/p__release/tuning/t1/tuning.html"),
        ("", "s3://b/p/artifacts/tuning/t1/tuning.html"),
    ],
)
def test_the_curve_is_where_a_browser_opens_it(
    run: Run, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, airflow: str, page: str
) -> None:
    """The measuring itself needs a lane: tests/integration/serving/test_tune.py."""
    found = Tuning(
        **{"id": "t1", "project": "p", "version": 1, "model_sha256": "00", "target_p99_ms": 50.0, "concurrency": 64},
        **{"images_per_request": 1, "seconds": 2.0, "rounds": 3, "cores": 2, "points": [point(1)], "chosen": point(1)},
        page_uri="s3://b/p/artifacts/tuning/t1/tuning.html",
    )
    monkeypatch.setattr("visionloop.stages.tune.run", lambda *given, report: found)
    monkeypatch.setenv("VISIONLOOP_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("VISIONLOOP_AIRFLOW_URL", airflow)
    shown = run("serving tune p --dry-run")
    assert shown.code == 0
    assert f"the curve: {page}\n{project} was left as it is: a dry run\n" in shown.out
    assert json.loads(run("serving tune p --dry-run --json").out)["page_uri"] == found.page_uri
