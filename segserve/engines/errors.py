"""The one error of this package."""


class ServerError(Exception):
    """A server cannot be configured, started or stopped. The message is one line for people."""
