"""From files to batches of tokens, in an order that depends on nothing but the seed."""

from __future__ import annotations

import codecs
import fnmatch
import os
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundry_log.config import DataConfig
from foundry_log.training.tokenizer import Tokenizer

_NOT_STDLIB = ("site-packages", "dist-packages", "__pycache__")
_MAX_SEED = 2**63


@dataclass(frozen=True)
class Corpus:
    """Texts that were read, in order."""

    source: Path
    texts: tuple[str, ...]
    bytes_read: int
    skipped_files: int
    """Files that could not be read or are no UTF-8."""

    def facts(self) -> dict[str, Any]:
        """Return what the log says about them."""
        return {
            "source": str(self.source),
            "files": len(self.texts),
            "bytes": self.bytes_read,
            "skipped_files": self.skipped_files,
        }


class TokenDataset:
    """Examples of `length` tokens, one after the other, each with the tokens that follow it.

    What is left over at the end of the text is no example.

    Args:
        tokens: one-dimensional.
        length: tokens of one example.
    """

    def __init__(self, tokens: Tensor, length: int) -> None:
        count = max(0, (len(tokens) - 1) // length)
        self.length = length
        self._inputs = tokens[: count * length].view(count, length)
        self._targets = tokens[1 : count * length + 1].view(count, length)

    def __len__(self) -> int:
        return len(self._inputs)

    @cached_property
    def crc32(self) -> int:
        """A check of all tokens that are trained on; about 1 ms a megabyte, once."""
        return zlib.crc32(self._targets[-1:].numpy().data, zlib.crc32(self._inputs.numpy().data))

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets, each of shape (size, length); the last batch may be smaller.

        Args:
            size: examples of a batch.
            order: numbers of the examples; None for as they stand.
        """
        if order is None:
            order = torch.arange(len(self))
        for numbers in torch.split(order, size):
            yield self._inputs[numbers].long(), self._targets[numbers].long()


@dataclass(frozen=True)
class Datasets:
    """What a run trains on and is evaluated on."""

    train: TokenDataset
    evaluation: TokenDataset
    bytes_per_token: float

    def facts(self) -> dict[str, Any]:
        """Return what the log says about them."""
        return {
            "num_examples": len(self.train),
            "num_eval_examples": len(self.evaluation),
            "columns": ["input_ids", "labels"],
            "sequence_length": self.train.length,
        }


def split(tokens: Tensor, config: DataConfig, bytes_per_token: float) -> Datasets:
    """Return what is trained on and, of the end of the text, what is kept for evaluation."""
    kept = int(len(tokens) * config.eval_fraction)
    first, last = tokens[: len(tokens) - kept], tokens[len(tokens) - kept :]
    return Datasets(
        TokenDataset(first, config.sequence_length),
        TokenDataset(last, config.sequence_length),
        bytes_per_token,
    )


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the numbers from 0 to `count - 1`, shuffled in a way of this seed and epoch alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % _MAX_SEED)
    return torch.randperm(count, generator=generator)


def tokenize(texts: tuple[str, ...], tokenizer: Tokenizer) -> Tensor:
    """Return the tokens of all texts as one tensor of int32.

    Raises:
        ValueError: the tokenizer gives something else than integers of its vocabulary.
    """
    size = tokenizer.vocab_size
    if not isinstance(size, int) or size < 2:
        raise ValueError(f"tokenizer.vocab_size={size!r} must be an integer of 2 or more")
    parts = []
    for text in texts:
        tokens = tokenizer.encode(text)
        try:
            parts.append(torch.tensor(list(tokens), dtype=torch.int32))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"tokenizer.encode() gave a {type(tokens).__name__}; it must give a list of int"
            ) from error
    joined = torch.cat(parts)
    if not len(joined):
        raise ValueError("tokenizer.encode() gave no tokens for the whole text; use another one")
    low, high = int(joined.min()), int(joined.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"tokenizer.encode() gave token {low if low < 0 else high}; with "
            f"tokenizer.vocab_size={size} tokens must be from 0 to {size - 1}"
        )
    return joined


def read_corpus(config: DataConfig) -> Corpus:
    """Read at most `max_megabytes` of text.

    Raises:
        FileNotFoundError: `data.path` does not exist.
        ValueError: no text is found.
    """
    source = config.path or Path(sysconfig.get_path("stdlib"))
    if not source.exists():
        raise FileNotFoundError(
            f"data.path={str(source)!r} does not exist; give a text file or a directory of them, "
            "or leave it out to train on the sources of Python's standard library"
        )
    excluded = () if config.path else _NOT_STDLIB
    remaining = int(config.max_megabytes * 1e6)
    texts, skipped, bytes_read = [], 0, 0
    for path in _files(source, config.pattern, excluded):
        text = _text(path, remaining - bytes_read)
        if text is None:
            skipped += 1
        elif text:
            texts.append(text)
            bytes_read += len(text.encode())
        if bytes_read >= remaining:
            break
    if not texts:
        raise ValueError(
            f"data.path={str(source)!r} has no text: {skipped} files are no readable UTF-8, and no "
            f"other one that matches data.pattern={config.pattern!r} has any; give other files"
        )
    return Corpus(source, tuple(texts), bytes_read, skipped)


def _files(source: Path, pattern: str, excluded: tuple[str, ...]) -> Iterator[Path]:
    """Yield a file itself, or the files of a directory in sorted order."""
    if source.is_file():
        yield source
        return
    for directory, subdirectories, names in os.walk(source):
        subdirectories[:] = sorted(set(subdirectories).difference(excluded))
        for name in sorted(fnmatch.filter(names, pattern)):
            yield Path(directory, name)


def _text(path: Path, limit: int) -> str | None:
    """Return the text of the first `limit` bytes, or None where it cannot be read as UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(limit)
            is_whole = not file.read(1)
        # A character that the limit cuts in two is left out, any other broken one is an error.
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=is_whole)
    except (OSError, UnicodeDecodeError):
        return None
