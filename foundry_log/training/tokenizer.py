"""Text to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """What the Trainer needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of different tokens, 2 or more."""
        ...

    def encode(self, text: str, /) -> Sequence[int]:
        """Return the tokens of `text`: integers from 0 to `vocab_size - 1`."""
        ...


class ByteTokenizer:
    """One token a byte of UTF-8.

    Args:
        vocab_size: number of tokens that the model provides for, 256 or more.
    """

    def __init__(self, vocab_size: int = 256) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str, /) -> Sequence[int]:
        """Return the bytes of `text`."""
        return text.encode()
