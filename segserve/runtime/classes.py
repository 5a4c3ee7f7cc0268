"""Parses the classes that a request names: labels or ids, as a list or separated by commas."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

import orjson

from .errors import BadOptionError
from .record import ModelRecord

ClassName = str | int

_ID = re.compile(r"[0-9]{1,3}")


def split_names(value: object) -> object:
    """Splits a string into class names: a JSON list, or names separated by commas. Strips the names
    of a list.

    None is returned unchanged.

    Raises:
        ValueError: the value does not name classes.
    """
    if isinstance(value, str):
        value = _from_json(value) if value.lstrip().startswith("[") else value.split(",")
    if value is None:
        return value
    if not isinstance(value, list | tuple) or not all(type(name) in (str, int) for name in value):
        raise ValueError("expected labels or ids of classes, as a list or separated by commas")
    names = tuple(name.strip() if isinstance(name, str) else name for name in value)
    if not names or "" in names:
        raise ValueError(
            "expected at least one class, and none without a name; leave the option out for all "
            "classes"
        )
    return names


def _from_json(text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(
            f"expected a list in JSON, as it begins with a bracket: {error}"
        ) from error


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
