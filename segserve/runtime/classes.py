"""Converts the classes that a request names to ids."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

from ..schema.request import ClassName
from .errors import BadOptionError
from .record import ModelRecord

_ID = re.compile(r"[0-9]{1,3}")


def class_ids(names: Iterable[ClassName] | None, record: ModelRecord) -> frozenset[int] | None:
    """Converts class names to ids. None, which means all classes, stays None.

    If a name is both a label and an id, the label wins.

    Raises:
        BadOptionError: the model has no such class; the message lists the model's classes.
    """
    return None if names is None else frozenset(_class_id(name, record) for name in names)


def _class_id(name: ClassName, record: ModelRecord) -> int:
    if name in record.labels:
        return record.labels.index(str(name))
    if _ID.fullmatch(str(name)) and int(name) < len(record.classes):
        return int(name)
    known = ", ".join(f"{index} {label:.40}" for index, label in enumerate(record.labels))
    raise BadOptionError(
        f"option classes: got {name!r:.80}; {_hint(name, record)}the classes are: {known}"
    )


def _hint(name: ClassName, record: ModelRecord) -> str:
    by_lower_case = {label.lower(): label for label in record.labels}
    close = get_close_matches(str(name)[:80].lower(), by_lower_case, n=1)
    return f"did you mean {by_lower_case[close[0]]!r}? " if close else ""
