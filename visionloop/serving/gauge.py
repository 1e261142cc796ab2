"""The model that a lane is sent to have its memory and its server's age read: its name, its file, its configuration.

Triton's own metrics count the memory of the whole machine only. A model of the python backend sees the processes of
its lane wherever the lane runs, and is asked over the wire as any other.
"""

import json
from pathlib import Path

NAME = "visionloop..lane-memory-2"
"""No project can be called so; a lane may still hold an earlier one, whose number was another, with other answers."""
QUESTION, ANSWER = "model", "memory"
FILE = "file:1/model.py"
"""Where Triton's load request puts the source."""


def source() -> bytes:
    """The model's Python file."""
    return (Path(__file__).parent / "sent" / "lane_memory.py").read_bytes()


def config() -> str:
    """Triton's configuration (JSON)."""
    return json.dumps(
        {
            "name": NAME,
            "backend": "python",
            "max_batch_size": 0,
            "input": [{"name": QUESTION, "data_type": "TYPE_STRING", "dims": [2]}],
            "output": [{"name": ANSWER, "data_type": "TYPE_INT64", "dims": [4]}],
            "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        }
    )
