"""Runs an archive: TorchServe or Ray Serve. Each engine starts, watches and stops workers."""
