"""What the capture service has done, as Prometheus asks for it."""

import threading
from collections import Counter
from typing import Literal

MEANINGS = {
    "captured": "Requests taken over from the endpoint",
    "dropped": "Requests dropped because buffers were full",
    "cut": "Requests that ended or were given up before the answer was whole",
    "unreadable": "Requests without a readable answer",
    "written": "Rows (images) written to the object store",
    "failed": "Writes that failed and were tried again",
    "lost": "Rows given up at the end of the service",
    "bytes": "Bytes of requests and answers taken over from the endpoint",
    "written_bytes": "Bytes of the files written to the object store",
}
LABELLED = {
    "requests": "Requests that reached the service, by model, lane and outcome",
    "images": "Rows (images) written to the object store, by model, lane and version",
}
"""Families with labels, beside the plain ones."""
Outcome = Literal["captured", "full", "crowded", "too_large", "cut", "refused"]
"""What became of a request: taken over; dropped because the buffer was full, all that pass held too much, or it was too
large itself; broken off; or not answered with success."""
PLAIN: dict[Outcome, str] = {
    **{"captured": "captured", "cut": "cut", "refused": "unreadable"},
    **{"full": "dropped", "crowded": "dropped", "too_large": "dropped"},
}
"""The plain family that counts an outcome too."""
Labels = tuple[tuple[str, str], ...]


class Counters:
    """Counts by name, shared among threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter(dict.fromkeys(MEANINGS, 0))
        self._labelled: Counter[tuple[str, Labels]] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Count on."""
        assert name in MEANINGS, name
        with self._lock:
            self._counts[name] += count

    def add_labelled(self, name: str, count: int = 1, **labels: str) -> None:
        """Count on, under labels: only values of which there are few, and none that a caller chooses freely."""
        assert name in LABELLED, name
        with self._lock:
            self._labelled[name, tuple(sorted(labels.items()))] += count

    def add_request(self, outcome: Outcome, *, model: str, lane: str) -> None:
        """Count a request under its outcome, with labels and without."""
        self.add(PLAIN[outcome])
        self.add_labelled("requests", model=model, lane=lane, outcome=outcome)

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def labelled(self, name: str, **labels: str) -> int:
        """The count under exactly these labels."""
        return self._labelled[name, tuple(sorted(labels.items()))]

    def prometheus(self) -> str:
        """Prometheus's text format."""
        with self._lock:
            found = sorted(self._labelled.items())
        lines = []
        for name, meaning in (MEANINGS | LABELLED).items():
            metric = f"visionloop_capture_{name}_total"
            lines += [f"# HELP {metric} {meaning}.", f"# TYPE {metric} counter"]
            lines += [f"{metric} {self[name]}"] if name in MEANINGS else []
            lines += [f"{metric}{{{_shown(labels)}}} {count}" for (of, labels), count in found if of == name]
        return "\n".join(lines) + "\n"


def _shown(labels: Labels) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
