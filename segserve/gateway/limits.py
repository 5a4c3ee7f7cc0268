"""The limits of one request and of one client."""

from typing import NamedTuple


class Limits(NamedTuple):
    """The limits of the gateway.

    Attributes:
        request_bytes: a larger request is rejected.
        request_s: time limit for a request to arrive and for its response to be read. After it, the
            request is rejected, or the response is aborted.
        client_in_flight: how many requests of one client TorchServe holds at a time.
        client_waiting: how many more requests of one client wait in the gateway; the next one is
            rejected.
        client_header: the header in which a proxy names the client; None to use the client's
            address.
    """

    request_bytes: int
    request_s: float = 120
    client_in_flight: int = 8
    client_waiting: int = 100
    client_header: str | None = None
