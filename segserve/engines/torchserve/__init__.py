"""TorchServe: `segserve.engines.torchserve.process.TorchServe` starts, watches and stops it."""
