"""What `visionloop serving tune` writes to the project file."""

from pathlib import Path

from visionloop.cli.serving import _write
from visionloop.project import load_project
from visionloop.records import TunedPoint

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
