"""What can keep a client from getting a segmentation, as one hierarchy. Every message is one line for people."""


class ClientError(Exception):
    """Base of every error of the clients but those about the caller's own arguments and files."""


class UnreachableError(ClientError):
    """No server answers at the address, or the connection broke before the answer was whole."""


class TimedOutError(ClientError):
    """The server took the request, and did not answer in time."""


class MalformedAnswerError(ClientError):
    """Something answered with success, and not with a segmentation of this image."""


class RefusedError(ClientError):
    """The server answered with an error.

    Attributes:
        status: HTTP's, over gRPC the one that HTTP would have had.
        code: of the server's error, for programs: `image_truncated`, or TorchServe's `ServiceUnavailableException`.
        message: the server's, for people.
        retry_after_s: how long the server asked to wait, where it did.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class TokenRefusedError(RefusedError):
    """The token is missing, wrong or expired; TorchServe does not tell which."""


class UnknownModelError(RefusedError):
    """The server has no model of that name, or not in that version."""
