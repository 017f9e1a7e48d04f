"""Messages of a prompt from templates, with variables and few-shot examples.

    format_prompt("You answer in {language}.", "{question}", {"language": "French", "question": q})

`{name}` is a variable and `{{`, `}}` are braces. Values are put in as they are: they are never
templates themselves, and no template reaches into them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from pydantic import BaseModel

Example = tuple[Any, Any] | Mapping[str, Any]
"""What a user says and what the model is to answer; `user` and `assistant`, or `input` and
`output`, are a mapping's names for them."""

_EXAMPLE_NAMES = (("user", "assistant"), ("input", "output"))


def format_prompt(
    system_prompt: str,
    user_prompt: str,
    variables: Mapping[str, Any] | None = None,
    examples: Iterable[Example] | None = None,
) -> list[dict[str, Any]]:
    """Return the system message, the examples as turns of a talk, and the user's message.

    Args:
        system_prompt: template; left out where it is empty.
        user_prompt: template.
        variables: name to value of both; text is put in as it is, mappings, lists and pydantic
            models as JSON.
        examples: pairs, or mappings, of values of the same kinds; they are no templates.

    Raises:
        ValueError: a variable is missing, a template has braces that are no variable, or an
            example is none.
    """
    given = {} if variables is None else variables
    messages = [_message("system", _filled(system_prompt, given))] if system_prompt else []
    for example in examples or ():
        said, answered = _turns(example)
        messages += [_message("user", _text(said)), _message("assistant", _text(answered))]
    return [*messages, _message("user", _filled(user_prompt, given))]


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _filled(template: str, variables: Mapping[str, Any]) -> str:
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"the template has a brace of its own ({error}): write {{{{ or }}}} for one"
        ) from error
    return "".join(
        literal + ("" if name is None else _value(name, spec, conversion, variables))
        for literal, name, spec, conversion in pieces
    )


def _value(
    name: str, spec: str | None, conversion: str | None, variables: Mapping[str, Any]
) -> str:
    if "." in name or "[" in name:
        raise ValueError(
            f"template variable {name!r} reaches into a value, which templates may not: give "
            "what it stands for a name of its own"
        )
    if spec or conversion or not name.isidentifier():
        raise ValueError(
            f"{name!r} between braces is no plain name of a template variable: write {{name}} "
            "for a variable, and {{ and }} for braces"
        )
    if name not in variables:
        raise ValueError(f"Missing template variable: {name!r}")
    return _text(variables[name])


def _turns(example: Example) -> tuple[Any, Any]:
    if isinstance(example, Mapping):
        for said, answered in _EXAMPLE_NAMES:
            if said in example and answered in example:
                return example[said], example[answered]
    elif isinstance(example, (tuple, list)) and len(example) == 2:
        return example[0], example[1]
    raise ValueError(
        "an example must be a pair (user, assistant), or a mapping with 'user' and 'assistant', or "
        f"'input' and 'output'; a {type(example).__name__} of another shape was given"
    )


def _text(value: Any) -> str:
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    return str(value)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)
