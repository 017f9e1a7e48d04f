"""Prompts from templates: variables, braces, examples, and what is no template."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from foundry_log.services.prompts import format_prompt

pytestmark = pytest.mark.unit


class User(BaseModel):
    """A person."""

    name: str


def contents(*args: Any, **options: Any) -> list[str]:
    """The texts of a prompt's messages."""
    return [message["content"] for message in format_prompt(*args, **options)]


def test_a_prompt_is_a_system_and_a_user_message() -> None:
    """In that order."""
    assert format_prompt("Be brief.", "Hello") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]


def test_an_empty_system_prompt_is_left_out() -> None:
    """One message remains."""
    assert format_prompt("", "Hello") == [{"role": "user", "content": "Hello"}]


def test_variables_stand_in_both_templates() -> None:
    """As often as they are named."""
    assert contents("{a}{a}", "{a} and {b}", {"a": "x", "b": 2}) == ["xx", "x and 2"]


def test_examples_are_turns_between_system_and_user() -> None:
    """Pairs, and mappings under either pair of names."""
    examples = [("q1", "a1"), {"user": "q2", "assistant": "a2"}, {"input": "q3", "output": "a3"}]
    messages = format_prompt("s", "{q}", {"q": "q4"}, examples)
    assert [message["role"][0] for message in messages] == list("suauauau")
    assert [message["content"] for message in messages[1:]] == [
        *("q1", "a1", "q2", "a2", "q3", "a3", "q4")
    ]


def test_values_that_are_no_text_become_json() -> None:
    """Models, mappings and lists, models inside of them too."""
    example = ({"who": "Ä", "user": User(name="Ada")}, User(name="Ada"))
    asked, answered, said = contents("", "{x}", {"x": [1, None]}, [example])
    assert json.loads(asked) == {"who": "Ä", "user": {"name": "Ada"}}
    assert "Ä" in asked
    assert json.loads(answered) == {"name": "Ada"}
    assert said == "[1, null]"


def test_a_missing_variable_is_named() -> None:
    """In either template, also where no variables are given."""
    with pytest.raises(ValueError, match=r"^Missing template variable: 'x'$"):
        format_prompt("{x}", "y")
    with pytest.raises(ValueError, match=r"^Missing template variable: 'x'$"):
        format_prompt("y", "{x}", {"y": 1})


def test_double_braces_are_braces() -> None:
    """So that JSON can be shown."""
    assert contents("", '{{"name": "{x}"}}', {"x": "Ada"}) == ['{"name": "Ada"}']


@pytest.mark.parametrize("template", ["{x.__class__}", "{x[0]}", "{x.name}"])
def test_a_template_reaches_into_no_value(template: str) -> None:
    """Neither attributes nor items, whatever the value is."""
    with pytest.raises(ValueError, match="reaches into a value"):
        format_prompt("", template, {"x": User(name="Ada")})


@pytest.mark.parametrize("template", ["{x!r}", "{x:>10}", "{}", "{0}", '{"a": 1}', "{x y}"])
def test_what_is_no_plain_name_is_refused(template: str) -> None:
    """The message says how braces are written."""
    with pytest.raises(ValueError, match="no plain name"):
        format_prompt("", template, {"x": "1"})


@pytest.mark.parametrize("template", ["{", "}", "a { b", "{x"])
def test_a_lone_brace_is_refused(template: str) -> None:
    """The message says how one is written."""
    with pytest.raises(ValueError, match="brace of its own"):
        format_prompt("", template, {"x": "1"})


def test_values_and_examples_are_no_templates() -> None:
    """Braces in them stay."""
    assert contents("", "{x}", {"x": "{y}{{"}, [("{x}", "{z")]) == ["{x}", "{z", "{y}{{"]


@pytest.mark.parametrize("example", ["ab", ("a",), {"user": "a"}, 7])
def test_an_example_of_another_shape_is_refused(example: Any) -> None:
    """The message says which shapes there are."""
    with pytest.raises(ValueError, match="must be a pair"):
        format_prompt("", "", None, [example])
