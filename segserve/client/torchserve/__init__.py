"""Stubs of TorchServe's gRPC inference API, generated from inference.proto. They need grpcio and
protobuf.
"""
