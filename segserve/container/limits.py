"""What one request, and one client, may take."""

from typing import NamedTuple


class Limits(NamedTuple):
    """Of requests at the door.

    Attributes:
        request_bytes: a request of more bytes is refused.
        request_s: a request that takes longer to arrive is refused, an answer that is read for longer is broken off.
        client_in_flight: how many requests of one client TorchServe has at a time.
        client_waiting: how many more of its requests wait at the door; the next one is refused.
        client_header: the header in which a proxy names the client; None where its address does.
    """

    request_bytes: int
    request_s: float = 120
    client_in_flight: int = 8
    client_waiting: int = 100
    client_header: str | None = None
