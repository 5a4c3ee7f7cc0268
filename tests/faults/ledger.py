"""What became of requests: every one that was accepted is answered, refused or lost, and nothing
else.
"""

import threading
from collections import Counter
from dataclasses import dataclass, field

from segserve.client.errors import ClientError, ResponseError, UnreachableError

_REFUSALS = frozenset(
    {400, 406, 408, 413, 415, 422, 507}
)  # docs/api.md and docs/operations.md; 503 says when to come


@dataclass
class Ledger:
    """Counts of requests.

    Attributes:
        answered: by a segmentation.
        refused: by a documented error; 503 counts only where it says when to come again.
        lost: sent over a connection that was taken, and then nothing, or an error that no document
            knows.
        turned_away: found nobody who listens, hence were not accepted.
        reasons: of what was not answered, how often each.
    """

    answered: int = 0
    refused: int = 0
    lost: int = 0
    turned_away: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    _changing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def accepted(self) -> int:
        return self.answered + self.refused + self.lost

    def answer(self) -> None:
        with self._changing:
            self.answered += 1

    def refuse(self, status: int, code: str, retry_after: object) -> None:
        documented = status in _REFUSALS or (status == 503 and retry_after is not None)
        with self._changing:
            self.refused += documented
            self.lost += not documented
            self.reasons[f"{status} {code}"] += 1

    def fail(self, error: ClientError) -> None:
        """What the client says of a request that has no segmentation."""
        if isinstance(error, ResponseError):
            self.refuse(error.status, error.code, error.retry_after_s)
            return
        turned_away = isinstance(error, UnreachableError) and "Connection refused" in str(error)
        with self._changing:
            self.turned_away += turned_away
            self.lost += not turned_away
            self.reasons[
                "nobody listens" if turned_away else f"{type(error).__name__}: {error}"
            ] += 1
