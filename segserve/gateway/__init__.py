"""Runs TorchServe and its gateway in a container. Environment variables configure it; it logs JSON
lines.

`python -m segserve.gateway` is the image's command and process 1. It also runs outside a
container. The variables are those of `settings.Settings`, listed in docs/operations.md. `python -m
segserve.gateway.health` is the image's health check.
"""
