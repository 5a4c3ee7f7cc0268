"""Clients that send one image after the other, with this project's own client."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from segserve.client import ClientError, SegmentationClient

from .ledger import Ledger

_PAUSE_S = 0.2  # after an error response, so that a server that is down gets few requests a second
_TIMEOUT_S = 60.0


class Load:
    """As many hasty clients, which send every image once, as patient ones, which come again as the
    client does.

    Attributes:
        hasty: what became of each request.
        patient: the final outcome of each image, after all retries.
    """

    def __init__(
        self, url: str, token: str, image: bytes, *, clients: int = 4, retries: int = 20
    ) -> None:
        self.hasty, self.patient = Ledger(), Ledger()
        self._image = image
        self._over = threading.Event()
        self._clients = [
            SegmentationClient(
                url, token=token, retries=count, pool_size=clients, timeout_s=_TIMEOUT_S
            )
            for count in (0, retries)
        ]
        self._threads = [
            threading.Thread(target=self._send_on, args=(client, ledger), daemon=True)
            for client, ledger in zip(self._clients, (self.hasty, self.patient), strict=True)
            for _ in range(clients)
        ]

    @property
    def both(self) -> tuple[Ledger, Ledger]:
        return self.hasty, self.patient

    def wait_until(self, reached: Callable[["Load"], bool], timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached(self):
            assert time.monotonic() < deadline, (self.hasty, self.patient)
            time.sleep(0.02)

    def wait_for_responses(self, count: int) -> None:
        """Waits for so many more segmentations of hasty clients and one of patient clients."""
        hasty, patient = self.hasty.responded + count, self.patient.responded + 1
        self.wait_until(
            lambda load: load.hasty.responded >= hasty and load.patient.responded >= patient
        )

    def _send_on(self, client: SegmentationClient, ledger: Ledger) -> None:
        while not self._over.is_set():
            try:
                client.segment(self._image)
            except ClientError as error:
                ledger.fail(error)
                time.sleep(_PAUSE_S)
            else:
                ledger.respond()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * _TIMEOUT_S)
        for client in self._clients:
            with suppress(ClientError):
                client.close()
