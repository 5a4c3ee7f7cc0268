"""Writes models for other runtimes: ONNX, Triton, OpenVINO Model Server. Needs the extra `onnx`."""
