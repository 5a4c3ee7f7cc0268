"""The one error of this package."""


class ServerError(Exception):
    """A TorchServe that cannot be configured, started or stopped. The message is one line for
    people.
    """
