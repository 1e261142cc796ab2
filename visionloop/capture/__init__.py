"""The capture service: what Envoy samples of the traffic becomes Parquet in the object store. It never slows a request.

Envoy copies heads and bodies to it (ext_proc in observability mode) and waits for nothing. What it cannot hold or
write in time is dropped and counted.
"""
