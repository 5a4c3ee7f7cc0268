"""Why images are not segmented, or no more of them. Every message is one line for people."""

from ..runtime.errors import SegserveError


class SegmentError(SegserveError):
    """Refused before anything starts: sources that are none, or results that would be in each other's way."""

    code = "refused"


class StoppedError(SegmentError):
    """What went wrong would go wrong with every other image as well, so that the rest is left."""

    code = "stopped"


class InterruptedRunError(SegmentError):
    """Someone asked to stop, by `signal_number`. What was finished is kept."""

    code = "interrupted"

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.signal_number = signal_number
