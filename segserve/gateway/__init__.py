"""The HTTP gateway in front of every engine: tokens, limits, a fair queue, errors, metrics.

`python -m segserve.gateway` runs a gateway with its engine until SIGTERM; it is the command of the
container image, and `segserve serve` starts it in the background (docs/operations.md).
"""

TOKEN_FILE = "token"  # noqa: S105 - the name of a file
"""The generated token, inside the run folder."""

ENGINE_FOLDER = "engine"
"""Everything that the engine writes, inside the run folder."""

CANNOT_SERVE = "cannot serve: "
"""The beginning of the last message of a gateway that could not serve."""
