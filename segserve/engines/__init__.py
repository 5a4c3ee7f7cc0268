"""Runs an archive: TorchServe, local worker processes or Ray Serve. Each engine starts and stops
a server.
"""
