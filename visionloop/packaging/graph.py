"""The tensors of a packaged model, by name: the contract between export, Triton, monitor and clients. Light."""

INPUT = "image"
"""uint8 [N, H, W, C]."""
PROBABILITIES = "probabilities"
"""float32 [N, K]: what the endpoint answers."""
EMBEDDING = "embedding"
"""float32 [N, D]: what the monitor compares."""
OUTPUTS = (PROBABILITIES, EMBEDDING)
