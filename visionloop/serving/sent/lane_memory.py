"""Triton model that reads what its server and one model's own processes hold in memory, and since when it runs.

A lane is sent this file (see `visionloop.serving.gauge`), so it needs only what Triton's python backend brings along,
here and in the production container. It reads /proc of its machine or container: the server is its parent; a model of
the python backend has processes of its own beside it, whose command lines name the version's file and the instance.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

PROC = Path("/proc")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class TritonPythonModel:
    """One instance; Triton calls the method by this name."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each `model` (name, version) with `memory`, INT64 (see `figures`)."""
        return [respond(request) for request in requests]


def respond(request: Any) -> Any:
    """The answer to one request."""
    model, version = (each.decode() for each in pb_utils.get_input_tensor_by_name(request, "model").as_numpy().ravel())
    found = np.array(figures(os.getppid(), model, version), np.int64)
    return pb_utils.InferenceResponse([pb_utils.Tensor("memory", found)])


def figures(server: int, model: str, version: str) -> list[int]:
    """Resident bytes of the server, of this version's own processes, how many these are, and the server's start."""
    own = [pid for pid in children(server) if serves(pid, model, version)]
    return [sum(resident([server])), sum(resident(own)), len(own), started(PROC / str(server))]


def children(parent: int) -> list[int]:
    """Processes that this one started."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit() and parent_of(entry) == parent]


def parent_of(entry: Path) -> int:
    """Its parent's number; 0 for one that has just ended."""
    return stat(entry, 1)


def started(entry: Path) -> int:
    """When it began, in clock ticks since the machine did: a process of the same number later has another."""
    return stat(entry, 19)


def stat(entry: Path, place: int) -> int:
    """What the kernel says at this place behind the process's name; 0 for one that has just ended."""
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[place])
    except OSError:
        return 0


def serves(pid: int, model: str, version: str) -> bool:
    """Do its arguments name a file of the version and an instance of the model? A dead process has none any more."""
    try:
        arguments = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    wanted = (r".*/" + re.escape(version) + r"/[^/]+", re.escape(model) + r"_\d+_\d+")
    return all(any(re.fullmatch(pattern, argument) for argument in arguments) for pattern in wanted)


def resident(pids: Iterable[int]) -> Iterator[int]:
    """Bytes in memory of each that still runs."""
    for pid in pids:
        try:
            yield int((PROC / str(pid) / "statm").read_text().split()[1]) * PAGE_BYTES
        except OSError:
            continue
