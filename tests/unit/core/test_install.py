"""What the lock file installs: no package overwrites another's files, for the order of installation is nobody's."""

import csv
from collections import defaultdict
from importlib.metadata import distributions


def test_no_two_packages_bring_different_files_of_one_name() -> None:
    brought: dict[str, dict[str, str]] = defaultdict(dict)
    for package in distributions():
        name = package.name
        for path, digest, _ in csv.reader((package.read_text("RECORD") or "").splitlines()):
            brought[path][name] = digest
    clashes = {path: sorted(by) for path, by in brought.items() if len(set(by.values())) > 1}
    assert len(brought) > 10_000
    assert clashes == {}
