"""What counts as completed, rejected, lost, and never accepted."""

import pytest

from segserve.client.response import (
    MalformedResponseError,
    ResponseError,
    TimedOutError,
    UnreachableError,
)

from .ledger import Ledger


@pytest.mark.parametrize(
    ("error", "rejected", "lost", "turned_away"),
    [
        pytest.param(
            ResponseError(503, "overloaded", "later", retry_after_s=2.0),
            1,
            0,
            0,
            id="503-that-says-when",
        ),
        pytest.param(
            ResponseError(503, "ServiceUnavailableException", "later"),
            0,
            1,
            0,
            id="503-that-does-not",
        ),
        pytest.param(ResponseError(422, "image_corrupt", "corrupt"), 1, 0, 0, id="422"),
        pytest.param(ResponseError(500, "internal_error", "fault"), 0, 1, 0, id="500"),
        pytest.param(
            UnreachableError("no server responds there (Connection refused)"),
            0,
            0,
            1,
            id="no-listener",
        ),
        pytest.param(
            UnreachableError("no server responds there (Connection reset by peer)"),
            0,
            1,
            0,
            id="broken",
        ),
        pytest.param(TimedOutError("no response within 60 s"), 0, 1, 0, id="late"),
        pytest.param(MalformedResponseError("no JSON"), 0, 1, 0, id="malformed"),
    ],
)
def test_ledger_of_a_failure_counts_it_once(error, rejected, lost, turned_away):
    ledger = Ledger()
    ledger.fail(error)
    assert (ledger.rejected, ledger.lost, ledger.turned_away) == (rejected, lost, turned_away)
    assert ledger.accepted == rejected + lost
