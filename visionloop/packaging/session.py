"""Opens a packaged model with onnxruntime."""

from typing import Literal

import onnxruntime as ort

PROVIDERS = {"cpu": ["CPUExecutionProvider"], "gpu": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


def open_session(model: bytes, *, threads: int = 0, device: Literal["cpu", "gpu"] = "cpu") -> ort.InferenceSession:
    """A session with so many threads, 0: one per core. The caller has verified the bytes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=PROVIDERS[device])


def has(device: Literal["cpu", "gpu"]) -> bool:
    """Can this onnxruntime compute on it?"""
    return PROVIDERS[device][0] in ort.get_available_providers()
