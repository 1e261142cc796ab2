"""The shipped backend with faults that no graph can have, for tests only: a process that dies, leaks, or is slow.

What a model does is written into its ONNX metadata (`tiny.py`): `dies_after` so many requests, `leaks_bytes` with each;
`sleeps_ms` before it answers several images, and `fails` then. One image, as the endpoint's checks have, is answered.
The shipped backend's own file lies beside this one as `shipped/model.py`.
"""

import importlib.util
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WHERE = Path(__file__).parent / "shipped" / "model.py"
spec = importlib.util.spec_from_file_location("shipped_backend", WHERE)
assert spec is not None and spec.loader is not None
shipped = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shipped)


class TritonPythonModel(shipped.TritonPythonModel):  # type: ignore[misc, name-defined]
    """The shipped backend's model; faults come after so many requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """As the shipped one; the metadata says what is wrong with this model."""
        super().initialize(args)
        faults = self.session.get_modelmeta().custom_metadata_map
        self.dies_after = int(faults.get("dies_after", 0))
        self.leaks_bytes = int(faults.get("leaks_bytes", 0))
        self.sleeps_ms, self.fails = int(faults.get("sleeps_ms", 0)), int(faults.get("fails", 0))
        self.asked = 0
        self.kept: list[bytes] = []

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer as the shipped one, or die first."""
        self.asked += len(requests)
        if self.leaks_bytes:
            self.kept.append(b"x" * (self.leaks_bytes * len(requests)))
        if self.dies_after and self.asked > self.dies_after:
            print(f"\nfault at {time.time():.3f}: the process dies", flush=True)
            os._exit(1)
        if (self.sleeps_ms or self.fails) and any(_images(request) > 1 for request in requests):
            time.sleep(self.sleeps_ms / 1000)
            if self.fails:
                raise RuntimeError("a fault after all that time")
        return super().execute(requests)  # type: ignore[no-any-return]


def _images(request: Any) -> int:
    [tensor] = request.inputs()
    return int(tensor.shape()[0])
