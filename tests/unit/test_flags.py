"""Flags made from documents."""

from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field, PositiveInt
from typer.testing import CliRunner

from segserve.cli.training import flags_of, given_for
from segserve.runtime.record import Strict


class Soup(Strict):
    """A recipe.

    Attributes:
        spoons: how many of
            salt.
        herbs: dried ones.
    """

    spoons: PositiveInt = 1
    kind: Literal["thick", "thin"] = "thin"
    herbs: tuple[str, ...] = ()
    grams: tuple[Annotated[float, Field(ge=0)], ...] = ()
    hot: bool = True
    name: str | None = None


@pytest.fixture
def cook():
    """Runs a command with those flags; gives exit status, output and what the command was given."""
    app, seen = typer.Typer(), {}

    @app.command()
    @flags_of(Soup)
    def command(pot: str, *, lid: bool = False, **given: object) -> None:
        seen.update(pot=pot, lid=lid, **given_for(Soup, given))

    def run(*arguments):
        seen.clear()
        result = CliRunner().invoke(app, list(arguments), terminal_width=200)
        return result, dict(seen)

    return run


def test_flags_not_given_are_left_out(cook):
    assert cook("big")[1] == {"pot": "big", "lid": False}


def test_flags_become_values_of_their_fields(cook):
    _, seen = cook(
        "big", "--lid", "--spoons", "3", "--kind", "thick", "--herbs", "thyme,sage", "--grams", "2, 50.5",  # noqa: E501
        "--no-hot", "--name", "x",
    )  # fmt: skip
    assert seen == {
        "pot": "big",
        "lid": True,
        "spoons": 3,
        "kind": "thick",
        "herbs": ["thyme", "sage"],
        "grams": ["2", " 50.5"],
        "hot": False,
        "name": "x",
    }
    assert Soup.model_validate({name: seen[name] for name in Soup.model_fields}).grams == (2, 50.5)


def test_flags_of_wrong_type_are_rejected_by_the_command_line(cook):
    for arguments in (("--spoons", "many"), ("--kind", "solid"), ("--forks", "1")):
        result, seen = cook("big", *arguments)
        assert (result.exit_code, seen) == (2, {})


def test_flag_of_a_list_with_a_value_of_the_wrong_type_is_no_document(cook):
    seen = cook("big", "--grams", "2, [50.5")[1]
    with pytest.raises(ValueError, match=r"grams.1\n.*unable to parse string as a number"):
        Soup.model_validate({"grams": seen["grams"]})


def test_flags_are_described_by_the_documents_docstring(cook):
    output = cook("--help")[0].output
    assert "how many of salt." in output
    assert "dried ones." in output
    assert "A,B,..." in output
