"""Stubs of TorchServe's gRPC inference API, generated from inference.proto; they need grpcio and protobuf."""
