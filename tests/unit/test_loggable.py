"""Exceptions as they may be logged: what is wrong is told, and not with what."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

from foundry_log.services.loggable import MAX_CHAIN, MAX_SHOWN, loggable, public_text

pytestmark = pytest.mark.unit

BODY = "what the patient said"


class Person(BaseModel):
    age: int
    name: str = ""

    @field_validator("name")
    @classmethod
    def is_short(cls, name: str) -> str:
        """Quotes what it refuses."""
        if len(name) > 5:
            raise ValueError(f"{name} is too long")
        return name


def raised(error: BaseException, cause: BaseException | None = None) -> Any:
    """The error as it is caught, with a traceback."""
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


def refused(**fields: Any) -> ValidationError:
    """What pydantic says of a person that is none."""
    with pytest.raises(ValidationError) as caught:
        Person(**fields)
    return caught.value


def shown(error: BaseException) -> str:
    """What Python prints of it."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def test_an_exception_without_bodies_is_logged_as_it_is() -> None:
    """Nothing is copied where nothing is hidden."""
    error = raised(KeyError("age"), OSError(2, "no such file"))
    assert loggable(error) is error


def test_a_validation_error_says_what_is_wrong_and_not_with_what() -> None:
    """pydantic's own text quotes the value."""
    error = refused(age=BODY)
    assert BODY in str(error)

    text = public_text(error)

    assert text.startswith("1 fault in Person: age: Input should be a valid integer")
    assert BODY not in text


def test_the_text_of_a_validator_is_its_users_and_is_left_out() -> None:
    """It may quote what it refused."""
    assert public_text(refused(age=1, name=BODY)) == "1 fault in Person: name: value_error"


class Tagged(BaseModel):
    kind: Literal["a"]


class Other(BaseModel):
    kind: Literal["b"]


class Chosen(BaseModel, extra="forbid"):
    one: Annotated[Tagged | Other, Field(discriminator="kind")] | None = None
    ages: dict[str, int] = {}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"one": {"kind": BODY}}, "1 fault in Chosen: one: union_tag_invalid"),
        ({"ages": {BODY: "x"}}, "1 fault in Chosen: ages.…: Input should be a valid integer"),
        ({BODY: 1}, "1 fault in Chosen: …: Extra inputs are not permitted"),
    ],
)
def test_neither_tags_nor_keys_of_a_reply_are_told(fields: Any, text: str) -> None:
    """pydantic quotes them in its text and in the place of a fault."""
    with pytest.raises(ValidationError) as caught:
        Chosen.model_validate(fields)
    assert public_text(caught.value).startswith(text)
    assert BODY not in public_text(caught.value)


def test_a_subclass_of_an_sdks_error_is_told_as_one() -> None:
    """Wherever it is defined."""
    kind = type("APIError", (Exception,), {"__module__": "openai"})
    mine = type("Mine", (kind,), {"__module__": "my.errors"})
    assert public_text(mine(BODY)) == "said by openai"


def test_many_faults_are_counted_and_the_first_are_named() -> None:
    """A list of a thousand wrong items makes no long line."""

    class People(BaseModel):
        ages: list[int]

    with pytest.raises(ValidationError) as caught:
        People.model_validate({"ages": ["x"] * 1000})
    text = public_text(caught.value)
    assert text.startswith("1000 faults in People: ages.0: ")
    assert text.endswith(f"and {1000 - MAX_SHOWN} more")


def test_a_stand_in_keeps_name_traceback_and_chain() -> None:
    """Whoever reads the log finds the line that raised."""
    cause = refused(age=BODY)
    error = raised(RuntimeError("no person"), cause)

    told = loggable(error)

    assert BODY in shown(error)
    assert BODY not in shown(told)
    assert (type(told).__name__, str(told)) == ("RuntimeError", "no person")
    assert told.__traceback__ is error.__traceback__
    assert type(told.__cause__).__qualname__ == "ValidationError"
    assert "direct cause" in shown(told)


def test_the_exception_itself_is_left_as_it_was() -> None:
    """Only the log gets the stand-in."""
    error = raised(RuntimeError("no person"), refused(age=BODY))
    before = shown(error)
    loggable(error)
    assert shown(error) == before


@pytest.mark.parametrize("name", ["openai", "instructor"])
def test_texts_of_the_sdks_are_replaced_by_their_facts(name: str) -> None:
    """They quote what a server or a model said."""
    kind = type("RateLimitError", (Exception,), {"__module__": f"{name}.errors"})
    error = kind(BODY)
    error.status_code, error.request_id = 429, "r-1"
    assert public_text(error) == f"said by {name}, status_code 429, request_id r-1"
    assert public_text(kind(BODY)) == f"said by {name}"


def test_secrets_are_blanked_in_any_text_and_note() -> None:
    """A connection error may name the key that was used."""
    error = raised(OSError("refused: Authorization: Bearer abcdef1234567890"))
    assert "abcdef1234567890" not in shown(loggable(error))
    if sys.version_info >= (3, 11):
        noted = ValueError("x")
        noted.add_note(f"the body was {BODY}")
        assert BODY not in shown(loggable(noted))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with Python 3.11")
def test_members_of_a_group_stand_in_its_text() -> None:
    """Theirs are hidden as those of any exception."""
    group = ExceptionGroup("two", [refused(age=BODY), OSError("gone")])  # noqa: F821
    told = shown(loggable(group))
    assert BODY not in told
    assert "ValidationError: 1 fault in Person" in told
    assert "OSError: gone" in told


def test_a_chain_that_is_long_or_a_circle_is_cut() -> None:
    """It costs no time that grows with the chain, and hides what it has not looked at."""
    error: BaseException = refused(age=BODY)
    for number in range(100):
        error = raised(RuntimeError(str(number)), error)
    told = loggable(error)
    assert BODY not in shown(told)
    assert shown(told).count("direct cause") == MAX_CHAIN - 1

    first, second = RuntimeError("first"), RuntimeError("second")
    first.__context__, second.__context__ = second, first
    assert loggable(first) is first
