"""The outcomes of requests: every accepted request is completed, rejected or lost."""

import threading
from collections import Counter
from dataclasses import dataclass, field

from segserve.client.response import ClientError, ResponseError, UnreachableError

_REJECTIONS = frozenset(
    {400, 406, 408, 413, 415, 422, 507}
)  # docs/api.md and docs/operations.md; 503 says when to come


@dataclass
class Ledger:
    """Counts of requests.

    Attributes:
        responded: with a segmentation.
        rejected: with a documented error; a 503 must have `Retry-After`.
        lost: sent over a connection that was taken, and then nothing, or an error that no document
            knows.
        turned_away: found no listener, and so were not accepted.
        reasons: of requests without a segmentation, with counts.
    """

    responded: int = 0
    rejected: int = 0
    lost: int = 0
    turned_away: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    _changing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def accepted(self) -> int:
        return self.responded + self.rejected + self.lost

    def respond(self) -> None:
        with self._changing:
            self.responded += 1

    def reject(self, status: int, code: str, retry_after: object) -> None:
        documented = status in _REJECTIONS or (status == 503 and retry_after is not None)
        with self._changing:
            self.rejected += documented
            self.lost += not documented
            self.reasons[f"{status} {code}"] += 1

    def fail(self, error: ClientError) -> None:
        """What the client says of a request that has no segmentation."""
        if isinstance(error, ResponseError):
            self.reject(error.status, error.code, error.retry_after_s)
            return
        turned_away = isinstance(error, UnreachableError) and "Connection refused" in str(error)
        with self._changing:
            self.turned_away += turned_away
            self.lost += not turned_away
            self.reasons["no listener" if turned_away else f"{type(error).__name__}: {error}"] += 1
