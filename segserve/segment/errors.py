"""The errors that prevent or end a run. Every message is one line of text for people.

No server sends these errors, so they have no HTTP status.
"""

from typing import ClassVar


class SegmentError(Exception):
    """Base class of these errors: sources or results that cannot be used."""

    code: ClassVar[str] = "refused"
    """For programs: the error code in a batch job's table, if a single image has this error."""


class StoppedError(SegmentError):
    """The cause would make every other image fail too, so the run ends."""


class InterruptedRunError(SegmentError):
    """The signal `signal_number` ended the run. Finished results are kept."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.signal_number = signal_number
