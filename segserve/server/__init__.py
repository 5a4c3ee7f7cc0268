"""Starts, watches and stops a TorchServe: `segserve.server.process.TorchServe` is the way in."""
