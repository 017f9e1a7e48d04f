"""From files to batches: what is read, how it is cut, and in which order it comes."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import pytest

from foundry_log.config import DataConfig
from foundry_log.training.tokenizer import ByteTokenizer

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")

from foundry_log.training.data import (  # noqa: E402 - it imports torch
    Datasets,
    TokenDataset,
    epoch_order,
    read_corpus,
    split,
    tokenize,
)

pytestmark = pytest.mark.unit


class GivenTokens:
    """A tokenizer that answers with what it was given."""

    def __init__(self, tokens: Any, vocab_size: Any = 10) -> None:
        self.tokens = tokens
        self.vocab_size = vocab_size

    def encode(self, text: str) -> Any:
        return self.tokens


class TestReading:
    """Which files are read, and how far."""

    def test_files_come_in_sorted_order_with_subdirectories(self, tmp_path: Path) -> None:
        """Whatever the file system's own order, the text is the same."""
        for name in ("b.py", "a.py", "z/c.py", "k/d.py"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(name)
        assert read_corpus(DataConfig(path=tmp_path)).texts == ("a.py", "b.py", "k/d.py", "z/c.py")

    def test_only_names_of_the_pattern_are_read(self, tmp_path: Path) -> None:
        """`data.pattern` chooses the files."""
        (tmp_path / "a.py").write_text("code")
        (tmp_path / "a.txt").write_text("prose")
        assert read_corpus(DataConfig(path=tmp_path, pattern="*.txt")).texts == ("prose",)

    def test_a_single_file_needs_no_pattern(self, tmp_path: Path) -> None:
        """A path that is a file is read whatever its name."""
        (tmp_path / "notes").write_text("text")
        assert read_corpus(DataConfig(path=tmp_path / "notes")).texts == ("text",)

    def test_files_that_are_no_utf8_are_skipped_and_counted(self, tmp_path: Path) -> None:
        """One odd file does not stop a run."""
        (tmp_path / "a.py").write_bytes("gr\u00fcn".encode("latin-1"))
        (tmp_path / "b.py").write_text("blue")
        corpus = read_corpus(DataConfig(path=tmp_path))
        assert (corpus.texts, corpus.skipped_files) == (("blue",), 1)

    def test_files_that_cannot_be_read_are_skipped_and_counted(self, tmp_path: Path) -> None:
        """A link to nowhere is one."""
        (tmp_path / "a.py").symlink_to(tmp_path / "nowhere")
        (tmp_path / "b.py").write_text("blue")
        assert read_corpus(DataConfig(path=tmp_path)).skipped_files == 1

    def test_it_stops_at_the_limit(self, tmp_path: Path) -> None:
        """`data.max_megabytes` holds to the byte."""
        for name in ("a.py", "b.py", "c.py"):
            (tmp_path / name).write_text(name[0] * 60)
        corpus = read_corpus(DataConfig(path=tmp_path, max_megabytes=0.0001))
        assert corpus.texts == ("a" * 60, "b" * 40)
        assert corpus.bytes_read == 100

    def test_a_character_that_the_limit_cuts_in_two_is_left_out(self, tmp_path: Path) -> None:
        """The file is not taken for broken."""
        (tmp_path / "a.py").write_text("x" * 99 + "\u20ac")
        assert read_corpus(DataConfig(path=tmp_path, max_megabytes=0.0001)).texts == ("x" * 99,)

    def test_without_a_path_it_reads_the_standard_library(self) -> None:
        """The sources that every Python brings."""
        corpus = read_corpus(DataConfig(max_megabytes=0.05))
        assert corpus.source == Path(sysconfig.get_path("stdlib"))
        assert corpus.bytes_read == 50_000

    def test_installed_packages_are_not_the_standard_library(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They may lie below it, and differ from machine to machine."""
        for name in ("os.py", "site-packages/a.py", "dist-packages/b.py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        assert read_corpus(DataConfig()).texts == ("os.py",)

    def test_a_path_that_does_not_exist_is_refused(self, tmp_path: Path) -> None:
        """The message has field, value and remedy."""
        with pytest.raises(FileNotFoundError, match=r"data\.path='.*gone' does not exist; give"):
            read_corpus(DataConfig(path=tmp_path / "gone"))

    def test_a_directory_without_text_is_refused(self, tmp_path: Path) -> None:
        """The message has the pattern and how many files were skipped."""
        (tmp_path / "empty.py").write_text("")
        (tmp_path / "image.py").write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match=r"1 files are no readable UTF-8.*pattern='\*\.py'"):
            read_corpus(DataConfig(path=tmp_path))


class TestTokenizing:
    """From text to a tensor, whatever the tokenizer."""

    def test_bytes_are_their_own_tokens(self) -> None:
        """One token a byte of UTF-8, files one after the other."""
        assert tokenize(("a\u00fc", "b"), ByteTokenizer()).tolist() == [97, 195, 188, 98]

    @pytest.mark.parametrize("token", [-1, 10])
    def test_a_token_outside_of_the_vocabulary_is_refused(self, token: int) -> None:
        """In place of an index error deep in the model, or a dead GPU."""
        with pytest.raises(
            ValueError, match=rf"gave token {token}; with .*vocab_size=10 .* 0 to 9"
        ):
            tokenize(("x",), GivenTokens([1, token, 2]))

    @pytest.mark.parametrize("tokens", [["a"], [[1], [2, 3]], None, [1e99]])
    def test_what_is_no_list_of_integers_is_refused(self, tokens: Any) -> None:
        """The message says what the tokenizer must give."""
        with pytest.raises(ValueError, match="must give a list of int"):
            tokenize(("x",), GivenTokens(tokens))

    @pytest.mark.parametrize("size", [None, 1, "256"])
    def test_a_vocabulary_size_that_is_no_number_is_refused(self, size: Any) -> None:
        """A model needs to know how many tokens there are."""
        with pytest.raises(ValueError, match=r"tokenizer\.vocab_size=.* must be an integer of 2"):
            tokenize(("x",), GivenTokens([1], vocab_size=size))

    def test_a_tokenizer_without_tokens_is_refused(self) -> None:
        """There would be nothing to train on."""
        with pytest.raises(ValueError, match="no tokens for the whole text"):
            tokenize(("x", "y"), GivenTokens([]))


class TestExamples:
    """How tokens become examples and batches."""

    def test_each_target_is_the_token_after_its_input(self) -> None:
        """Examples follow one another without a gap; the rest of the text is none."""
        (batch,) = TokenDataset(torch.arange(9), length=4).batches(size=2)
        inputs, targets = batch
        assert inputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert targets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]

    @pytest.mark.parametrize(("tokens", "examples"), [(0, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
    def test_an_example_needs_one_token_more_than_its_length(
        self, tokens: int, examples: int
    ) -> None:
        """The last target is a token too."""
        assert len(TokenDataset(torch.arange(tokens), length=4)) == examples

    def test_batches_follow_the_order_given(self) -> None:
        """The last batch may be smaller."""
        batches = TokenDataset(torch.arange(4), length=1).batches(2, torch.tensor([2, 0, 1]))
        assert [inputs.flatten().tolist() for inputs, _ in batches] == [[2, 0], [1]]

    def test_an_order_is_a_permutation(self) -> None:
        """Each example comes once an epoch."""
        assert sorted(epoch_order(100, seed=1, epoch=1).tolist()) == list(range(100))

    def test_an_order_depends_on_nothing_but_seed_and_epoch(self) -> None:
        """What a run that is taken up again needs; seeds of any size will do."""
        first = epoch_order(100, seed=10**30, epoch=2)
        torch.rand(7)
        assert torch.equal(first, epoch_order(100, seed=10**30, epoch=2))

    def test_orders_of_two_epochs_differ(self) -> None:
        """Shuffled anew each time."""
        assert not torch.equal(epoch_order(100, seed=1, epoch=1), epoch_order(100, seed=1, epoch=2))


def loaded(config: DataConfig, tokenizer: Any) -> Datasets:
    """The text, tokenized and split."""
    corpus = read_corpus(config)
    tokens = tokenize(corpus.texts, tokenizer)
    return split(tokens, config, corpus.bytes_read / len(tokens))


class TestDatasets:
    """The whole way."""

    def test_the_end_of_the_text_is_kept_for_evaluation(self, tmp_path: Path) -> None:
        """Training sees nothing of it."""
        (tmp_path / "a.py").write_text("a" * 90 + "b" * 10)
        config = DataConfig(path=tmp_path, sequence_length=3, eval_fraction=0.1)
        data = loaded(config, ByteTokenizer())
        ((inputs, _),) = data.train.batches(1000)
        ((kept, _),) = data.evaluation.batches(1000)
        assert set(inputs.flatten().tolist()) == {ord("a")}
        assert set(kept.flatten().tolist()) == {ord("b")}

    def test_the_facts_say_what_was_loaded(self, tmp_path: Path) -> None:
        """They are what "Dataset loaded" logs."""
        (tmp_path / "a.py").write_text("a" * 101)
        config = DataConfig(path=tmp_path, sequence_length=10, eval_fraction=0.0)
        facts = loaded(config, ByteTokenizer()).facts()
        assert (facts["num_examples"], facts["num_eval_examples"]) == (10, 0)
        assert facts["columns"] == ["input_ids", "labels"]
        assert facts["sequence_length"] == 10
        read = read_corpus(config).facts()
        assert (read["source"], read["bytes"], read["files"]) == (str(tmp_path), 101, 1)

    def test_bytes_per_token_are_those_of_the_text(self, tmp_path: Path) -> None:
        """They turn nats per token into bits per byte."""
        (tmp_path / "a.py").write_text("abcdef")
        config = DataConfig(path=tmp_path, sequence_length=1)
        assert loaded(config, GivenTokens([1, 2, 3])).bytes_per_token == 2.0
