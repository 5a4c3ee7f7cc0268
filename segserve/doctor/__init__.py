"""Looks at all that a server needs, and says what to do about what is amiss.

Works with a broken installation, too: everything but the standard library is imported within the
    check that needs it.
`python -m segserve.doctor` is `segserve doctor` for when not even the command line can be imported.
"""

from .examination import as_json, as_lines, examine, status_of
from .findings import Finding, Level

__all__ = ["Finding", "Level", "as_json", "as_lines", "examine", "status_of"]
