"""The folder of backends, which both lanes prepare at the same moment."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from visionloop.errors import StackError
from visionloop.stack.triton import _link


def test_lanes_that_start_together_do_not_trip_over_each_other(tmp_path: Path) -> None:
    targets = [tmp_path / "old", tmp_path / "new"]
    for target in targets:
        target.mkdir()
    link = tmp_path / "backends" / "python"
    link.parent.mkdir()
    with ThreadPoolExecutor(8) as pool:
        for number in range(50):
            link.unlink(missing_ok=True) if number % 2 else None
            list(pool.map(lambda target: _link(link, target), [targets[number // 2 % 2]] * 8))
            assert link.readlink() == targets[number // 2 % 2]
    assert [path.name for path in link.parent.iterdir()] == ["python"]


def test_a_backend_that_is_missing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="is missing: run `make install`"):
        _link(tmp_path / "python", tmp_path / "none")
