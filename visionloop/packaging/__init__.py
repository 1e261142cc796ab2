"""A trained model as what is served: ONNX with pre- and post-processing inside, proven equal to the trained one."""
