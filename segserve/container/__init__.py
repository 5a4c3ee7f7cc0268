"""What runs in the container image: environment variables in, one TorchServe behind a door, JSON lines out.

`python -m segserve.container` is the image's command and process 1, and runs outside of a container as well; the
variables are those of `settings.Settings`, listed in docs/operations.md. `python -m segserve.container.health` is the
image's health check.
"""
