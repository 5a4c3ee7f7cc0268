"""Runs archives in worker processes of the gateway, without Java, TorchServe and Ray."""
