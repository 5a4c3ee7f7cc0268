"""Creates flags from the fields of a document, so that a file and a command always have the same
fields.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
import yaml

from ..runtime.record import Strict

Command = TypeVar("Command", bound=Callable[..., Any])

_METAVARS = {tuple: "A,B,...", dict: "KEY: VALUE, ..."}
_BRACKETS = {tuple: "[{}]", dict: "{{{}}}"}  # of YAML


def flags_of(*documents: type[Strict]) -> Callable[[Command], Command]:
    """Replaces a command's `**given` with one flag for every field of the documents.

    A flag that is not given is None. The syntax of a list is 6,12,18. The syntax of a mapping is
    cat: 2, dog: 1.5. See `given_for`.
    """

    def with_flags(command: Command) -> Command:
        own = [
            p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD
        ]
        made = [_parameter(name, kind) for kind in documents for name in kind.model_fields]
        command.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
        return command

    return with_flags


def given_for(document: type[Strict], given: Mapping[str, object]) -> dict[str, object]:
    """The given flags that belong to the document, parsed for its fields.

    Raises:
        ValueError: a list or a mapping cannot be parsed.
    """
    return {
        name: _parsed(name, document, value)
        for name, value in given.items()
        if name in document.model_fields and value is not None
    }


def _parameter(name: str, document: type[Strict]) -> inspect.Parameter:
    option = typer.Option(
        help=_described(document).get(name),
        rich_help_panel=document.__name__,
        metavar=_METAVARS.get(get_origin(_field_type(name, document))),
    )
    field = _field_type(name, document)
    kind: Any = field if field in (bool, int, float, str) or get_origin(field) is Literal else str
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _field_type(name: str, document: type[Strict]) -> Any:  # noqa: ANN401 - any type
    annotation = document.model_fields[name].annotation
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _parsed(name: str, document: type[Strict], value: object) -> object:
    brackets = _BRACKETS.get(get_origin(_field_type(name, document)))
    if brackets is None or not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(brackets.format(value))
    except yaml.YAMLError as error:
        raise ValueError(f"--{name.replace('_', '-')}: {value!r} cannot be read") from error


def _described(document: type[Strict]) -> dict[str, str]:
    """The description of each field, from the section `Attributes:` of the document's docstring."""
    _, _, section = inspect.getdoc(document).partition("Attributes:\n")  # type: ignore[union-attr]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
