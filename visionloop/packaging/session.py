"""Opens a packaged model with onnxruntime."""

import onnxruntime as ort


def open_session(model: bytes, *, threads: int = 0) -> ort.InferenceSession:
    """A session on the CPU with so many threads, 0: one per core. The caller has verified the bytes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
