"""The exceptions of the clients. Every message is one line of text for people."""


class ClientError(Exception):
    """Base class of the clients' errors, except errors in the caller's own arguments and files."""


class UnreachableError(ClientError):
    """No server responds at the address, or the connection broke before the response was
    complete.
    """


class TimedOutError(ClientError):
    """The server accepted the request but did not respond in time."""


class MalformedResponseError(ClientError):
    """The response reports success but is not a segmentation of this image."""


class ResponseError(ClientError):
    """The server sent an error response.

    Attributes:
        status: the HTTP status. Over gRPC, the status that HTTP would have.
        code: the error's code, for programs: `image_truncated`, or TorchServe's
            `ServiceUnavailableException`.
        message: the server's message, for people.
        retry_after_s: the delay before a retry that the server requested, in seconds; None if it
            requested none.
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class AuthenticationError(ResponseError):
    """The token is missing, wrong or expired. TorchServe does not report which."""


class UnknownModelError(ResponseError):
    """The server does not have this model, or not this version of it."""
