"""Bodies of messages as text, whatever a sender and the SDK have made of them; and results as JSON.

The SDK gives the data sections of a message as an iterable of bytes, an AMQP value as it is, with
its texts as bytes, and AMQP sequences as an iterable of lists.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import to_json

from foundry_log.services.bus_errors import UndecodableError

_BYTES = (bytes, bytearray, memoryview)


def message_text(message: Any) -> str:
    """Return the body of a message as text.

    Data is decoded as UTF-8. An AMQP value is its text, or JSON where it is none; AMQP sequences
    are a JSON array of their items; no body is "".

    Args:
        message: what has a `body`, and a `body_type` where that is not data.

    Raises:
        UndecodableError: it is not UTF-8, or of a type that JSON does not have.
    """
    body = message.body
    kind = getattr(getattr(message, "body_type", None), "value", None)
    if kind == "sequence":
        return _json(list(itertools.chain.from_iterable(body)))
    if body is None:
        return ""
    if isinstance(body, str):
        return body
    if isinstance(body, _BYTES):
        return _decoded(bytes(body))
    if kind == "value" or isinstance(body, Mapping) or not isinstance(body, Iterable):
        return _json(body)
    return _joined(body)


def result_body(result: Any) -> str | bytes:
    """Return what is sent for a result: text and bytes as they are, anything else as JSON.

    Models of pydantic, dataclasses, dates, UUIDs, enumerations, sets and paths have their JSON;
    NaN and infinities, which it does not know, become null.

    Raises:
        ValueError: JSON has nothing for a value in it.
    """
    return result if isinstance(result, (str, bytes)) else to_json(result, inf_nan_mode="null")


def _joined(parts: Iterable[Any]) -> str:
    pieces = [part.encode() if isinstance(part, str) else part for part in parts]
    if all(isinstance(piece, _BYTES) for piece in pieces):
        return _decoded(b"".join(pieces))
    return _json(pieces)


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        # Without its cause, which holds the body.
        raise UndecodableError(f"no UTF-8 at byte {error.start} of {len(content)}") from None


def _json(value: Any) -> str:
    try:
        return to_json(_plain(value), inf_nan_mode="null").decode()
    except UndecodableError:
        raise
    except (ValueError, RecursionError) as error:
        raise UndecodableError(f"no JSON for a {type(value).__name__}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, _BYTES):
        return _decoded(bytes(value))
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
