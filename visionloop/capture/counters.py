"""What the capture service has done, as Prometheus asks for it."""

import threading
from collections import Counter

MEANINGS = {
    "captured": "Requests taken over from the endpoint",
    "dropped": "Requests dropped because buffers were full",
    "cut": "Requests that ended or were given up before the answer was whole",
    "unreadable": "Requests without a readable answer",
    "written": "Rows (images) written to the object store",
    "failed": "Writes that failed and were tried again",
    "lost": "Rows given up at the end of the service",
}


class Counters:
    """Counts by name, shared among threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter(dict.fromkeys(MEANINGS, 0))
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Count on."""
        assert name in MEANINGS, name
        with self._lock:
            self._counts[name] += count

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def prometheus(self) -> str:
        """Prometheus's text format."""
        lines = []
        for name, meaning in MEANINGS.items():
            metric = f"visionloop_capture_{name}_total"
            lines += [f"# HELP {metric} {meaning}.", f"# TYPE {metric} counter", f"{metric} {self[name]}"]
        return "\n".join(lines) + "\n"
