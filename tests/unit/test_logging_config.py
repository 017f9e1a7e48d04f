"""LoggingConfig and ExperimentConfig: defaults, validation and what a wrong value is told."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from foundry_log import ExperimentConfig, LoggingConfig, configure
from foundry_log.config import ModelConfig, TrainingConfig

pytestmark = pytest.mark.unit


class TestLoggingConfigDefaults:
    """Defaults are those of the spec."""

    def test_default_values(self) -> None:
        """GIVEN no arguments WHEN it is made THEN each field of the spec has its default."""
        assert LoggingConfig().model_dump() == {
            "console_level": "INFO",
            "file_level": "DEBUG",
            "use_structured_logging": True,
            "log_to_wandb": True,
            "wandb_project": None,
            "wandb_mode": None,
            "log_to_tensorboard": False,
            "log_checkpoints": "reference",
            "max_log_files": 10,
            "max_log_size_mb": 100,
            "compress_rotated_logs": False,
            "after_rotation": None,
            "file_permissions": 0o640,
            "one_file_per_process": None,
            "rank_files": "each",
            "background_writing": False,
            "background_queue_size": 10_000,
            "background_overflow": "block",
            "redact_secrets": False,
            "redact_keys": [],
            "redact_patterns": [],
            "ship_to": None,
            "ship_every_s": 60.0,
            "delete_shipped_after_days": None,
            "log_metrics_every_n_steps": 10,
            "log_detailed_metrics_every_n_steps": 100,
            "reduce_metrics": False,
            "spike_z": 8.0,
            "report_hang_after_s": 600.0,
            "system_metrics_interval_s": 15.0,
            "profile_performance": False,
            "log_memory_every_n_steps": 100,
            "max_errors_to_track": 1000,
        }


class TestLoggingConfigCustomization:
    """Values given are values kept."""

    def test_custom_values(self) -> None:
        """GIVEN values WHEN it is made THEN they are used and the others keep their defaults."""
        config = LoggingConfig(console_level="WARNING", max_log_files=5, profile_performance=True)

        assert (config.console_level, config.max_log_files) == ("WARNING", 5)
        assert config.profile_performance is True
        assert config.file_level == "DEBUG"

    def test_levels_are_taken_in_any_case_and_as_numbers(self) -> None:
        """GIVEN "debug" or 30 WHEN it is made THEN the level's name is kept."""
        config = LoggingConfig(console_level="debug", file_level=30)

        assert (config.console_level, config.file_level) == ("DEBUG", "WARNING")


COUNTS = (
    "max_log_files",
    "max_log_size_mb",
    "background_queue_size",
    "log_metrics_every_n_steps",
    "log_detailed_metrics_every_n_steps",
    "log_memory_every_n_steps",
    "max_errors_to_track",
)


class TestLoggingConfigValidation:
    """Wrong values are refused at start, with field, value, rule and remedy."""

    @pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
    def test_the_five_levels_are_valid(self, level: str) -> None:
        """GIVEN a standard level WHEN it is made THEN both handlers take it."""
        config = LoggingConfig(console_level=level, file_level=level)

        assert (config.console_level, config.file_level) == (level, level)

    @pytest.mark.parametrize("level", ["INVALID_LEVEL", "", 5, None, "NOTSET"])
    def test_another_level_is_refused_with_the_choice(self, level: Any) -> None:
        """GIVEN no level WHEN it is made THEN the error names field, value and the levels."""
        with pytest.raises(ValidationError) as caught:
            LoggingConfig(console_level=level)

        text = str(caught.value)
        assert "console_level" in text
        assert f"{level!r} is not a level; use one of DEBUG, INFO, WARNING" in text

    @pytest.mark.parametrize("field", COUNTS)
    @pytest.mark.parametrize("value", [0, -1, -10])
    def test_counts_are_positive(self, field: str, value: int) -> None:
        """GIVEN zero or less WHEN it is made THEN field, value and rule are named."""
        with pytest.raises(ValidationError) as caught:
            LoggingConfig(**{field: value})

        text = str(caught.value)
        assert field in text
        assert f"{value} must be greater than 0; use 1 or more" in text
        assert f"input_value={value}" in text

    @pytest.mark.parametrize("given", [0o600, "0600", "600", "0o600"])
    def test_permissions_are_a_number_or_octal_text(self, given: Any) -> None:
        """GIVEN one or the other WHEN it is made THEN they are the same."""
        assert LoggingConfig(file_permissions=given).file_permissions == 0o600

    @pytest.mark.parametrize("given", [640, "0999", "rw-r-----", 0o400, -1, 0o1777, ""])
    def test_permissions_that_are_none_are_refused(self, given: Any) -> None:
        """GIVEN decimal 640 or what its owner cannot write WHEN it is made THEN it is refused."""
        with pytest.raises(ValidationError, match=r"use octal text such as .0640"):
            LoggingConfig(file_permissions=given)

    @pytest.mark.parametrize(
        ("given", "rule"),
        [({"redact_patterns": ["(x"]}, r"\(x"), ({"redact_keys": [" "]}, "redact|key|name")],
    )
    def test_a_rule_of_redaction_that_cannot_work_is_refused(self, given: Any, rule: str) -> None:
        """GIVEN a broken expression or no name WHEN it is made THEN it is named."""
        with pytest.raises(ValidationError, match=rule):
            LoggingConfig(**given)

    def test_an_overflow_rule_is_one_of_three(self) -> None:
        """GIVEN another word WHEN it is made THEN the choice is named."""
        with pytest.raises(ValidationError, match="'block', 'drop_newest' or 'drop_oldest'"):
            LoggingConfig(background_overflow="drop")

    def test_an_unknown_field_is_refused_with_the_nearest_name(self) -> None:
        """GIVEN a misspelt field WHEN it is made THEN the error says what was meant."""
        with pytest.raises(ValidationError, match="did you mean 'console_level'"):
            LoggingConfig(console_levle="INFO")

    def test_a_field_like_no_other_is_told_what_there_is(self) -> None:
        """GIVEN a field of another world WHEN it is made THEN the known fields are listed."""
        with pytest.raises(ValidationError, match=r"remove it\. Its fields are: console_level"):
            LoggingConfig(zzz=1)

    def test_assignments_are_checked(self) -> None:
        """GIVEN a config WHEN a wrong value is assigned THEN it is refused and nothing changes."""
        config = LoggingConfig()

        with pytest.raises(ValidationError):
            config.max_log_files = 0
        assert config.max_log_files == 10


class TestLoggingConfigIntegration:
    """As a part of an experiment's configuration."""

    def test_integrates_with_experiment_config(self, tiny_config: ExperimentConfig) -> None:
        """GIVEN an experiment's dict WHEN logging is put in THEN it validates as one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pydantic's, of the spec's call
            values = tiny_config.dict()
        values["logging"] = {"console_level": "DEBUG", "log_metrics_every_n_steps": 5}

        config = ExperimentConfig(**values)

        assert config.logging.console_level == "DEBUG"
        assert config.logging.log_metrics_every_n_steps == 5

    def test_only_the_name_of_an_experiment_is_required(self) -> None:
        """GIVEN a name WHEN an experiment is made THEN each section has its defaults."""
        config = ExperimentConfig(experiment_name="first")

        assert config.logging == LoggingConfig()
        assert config.random_seed == 42

    def test_a_wrong_value_in_a_section_is_named_with_its_path(self) -> None:
        """GIVEN a wrong value deep inside WHEN it is made THEN the error has the whole path."""
        with pytest.raises(ValidationError, match=r"logging\.max_log_files"):
            ExperimentConfig(experiment_name="first", logging={"max_log_files": 0})

    @pytest.mark.parametrize(
        "name", ["", "  ", ".", "..", "a/b", "../up", "a\\b", "a\nb", "x" * 201]
    )
    def test_a_name_cannot_leave_its_directory(self, name: str) -> None:
        """GIVEN a name that is a path WHEN an experiment is made THEN it is refused."""
        with pytest.raises(ValidationError, match="experiment_name"):
            ExperimentConfig(experiment_name=name)

    @pytest.mark.parametrize("name", ["gpt2-small_3.1", "Größe 7", "run 1"])
    def test_ordinary_names_are_taken(self, name: str) -> None:
        """GIVEN letters, digits, spaces and dots WHEN an experiment is made THEN it is kept."""
        assert ExperimentConfig(experiment_name=name).experiment_name == name

    def test_heads_that_do_not_divide_the_width_are_told_a_width(self) -> None:
        """GIVEN 10 over 4 heads WHEN it is made THEN the remedy is a number that works."""
        with pytest.raises(ValidationError, match=r"hidden_size=10 is no multiple .* use 8"):
            ExperimentConfig(experiment_name="x", model={"hidden_size": 10, "num_heads": 4})


class TestDictConfig:
    """`to_dict_config` gives plain data."""

    def test_it_is_plain_data(self) -> None:
        """GIVEN defaults WHEN the dict is made THEN JSON carries it without loss."""
        data = LoggingConfig().to_dict_config("logs", context={"team": "a"})

        assert json.loads(json.dumps(data)) == data

    def test_each_call_gives_a_dict_of_its_own(self) -> None:
        """GIVEN one dict that was changed WHEN another is made THEN it is not changed."""
        config = LoggingConfig()
        config.to_dict_config()["handlers"].clear()

        assert config.to_dict_config()["handlers"]

    def test_levels_and_sizes_reach_the_handlers(self) -> None:
        """GIVEN settings WHEN the dict is made THEN handlers and root have them."""
        config = LoggingConfig(console_level="ERROR", file_level="INFO", max_log_size_mb=2)
        data = config.to_dict_config()

        assert data["handlers"]["console"]["level"] == "ERROR"
        assert data["handlers"]["jsonl"]["level"] == "INFO"
        assert data["handlers"]["jsonl"]["maxBytes"] == 2 * 1024 * 1024
        assert data["handlers"]["jsonl"]["backupCount"] == 10
        assert data["root"]["level"] == "INFO"

    def test_without_structured_logging_there_is_no_jsonl(self) -> None:
        """GIVEN use_structured_logging=False WHEN the dict is made THEN only text is written."""
        data = LoggingConfig(use_structured_logging=False).to_dict_config()

        assert set(data["handlers"]) == {"console", "log"}

    def test_without_a_console_the_files_decide_the_level(self) -> None:
        """GIVEN console=False WHEN the dict is made THEN there is none, and root is the files'."""
        data = LoggingConfig(console_level="DEBUG", file_level="ERROR").to_dict_config(
            console=False
        )

        assert set(data["handlers"]) == {"log", "jsonl"}
        assert data["root"]["level"] == "ERROR"


class TestRanksDictConfig:
    """What `to_dict_config` gives under a launcher."""

    @pytest.fixture
    def as_rank(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        """A function that makes this process a rank of two."""

        def become(rank: int) -> None:
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", "2")

        return become

    def test_each_rank_names_its_files_by_itself(self, as_rank: Callable[[int], None]) -> None:
        """GIVEN rank 0 and rank 1 WHEN the dicts are made THEN the file handlers see to it."""
        for rank in (0, 1):
            as_rank(rank)
            handlers = LoggingConfig().to_dict_config()["handlers"]

            assert [handlers[name]["per_rank"] for name in ("log", "jsonl")] == [True, True]

    def test_others_than_the_first_show_warnings(self, as_rank: Callable[[int], None]) -> None:
        """GIVEN rank 1 WHEN the dict is made THEN its console is quiet, and says who speaks."""
        as_rank(1)
        data = LoggingConfig(console_level="DEBUG").to_dict_config()

        assert data["handlers"]["console"]["level"] == "WARNING"
        assert data["formatters"]["console"]["prefix"] == "[rank 1] "
        assert data["root"]["level"] == "DEBUG"  # the files'
        quiet = LoggingConfig(console_level="ERROR").to_dict_config()
        assert quiet["handlers"]["console"]["level"] == "ERROR"

    def test_the_first_shows_what_is_configured(self, as_rank: Callable[[int], None]) -> None:
        """GIVEN rank 0 WHEN the dict is made THEN only the prefix is new."""
        as_rank(0)
        data = LoggingConfig(console_level="DEBUG").to_dict_config()

        assert data["handlers"]["console"]["level"] == "DEBUG"
        assert data["formatters"]["console"]["prefix"] == "[rank 0] "

    def test_the_first_alone_writes_under_plain_names(self, as_rank: Callable[[int], None]) -> None:
        """GIVEN rank_files="first" WHEN rank 0's is made THEN no name has a rank."""
        as_rank(0)
        handlers = LoggingConfig(rank_files="first").to_dict_config()["handlers"]

        assert set(handlers) == {"log", "jsonl", "console"}
        assert handlers["jsonl"]["per_rank"] is False

    def test_the_others_have_a_console(self, as_rank: Callable[[int], None]) -> None:
        """GIVEN rank_files="first" WHEN rank 1's is made THEN it has no files, and no more."""
        as_rank(1)
        data = LoggingConfig(rank_files="first").to_dict_config()

        assert set(data["handlers"]) == {"console"}
        assert data["root"]["level"] == "WARNING"

    def test_the_others_without_a_console_are_silent(
        self, as_rank: Callable[[int], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """GIVEN no file and no console WHEN rank 1 warns THEN the stdlib's last resort is too."""
        as_rank(1)
        settings = LoggingConfig(rank_files="first", background_writing=True)
        with configure(settings, tmp_path / "logs", console=False):
            logging.getLogger("app").critical("nobody hears")

        assert capfd.readouterr().err == ""
        assert not (tmp_path / "logs").exists()


class TestAssignments:
    """A refused assignment changes nothing."""

    def test_also_where_two_fields_clash(self) -> None:
        """GIVEN a width of 64 WHEN 3 heads are assigned THEN it is refused and 4 stay."""
        config = ModelConfig()
        with pytest.raises(ValidationError, match="no multiple"):
            config.num_heads = 3

        assert config.num_heads == 4

    def test_a_run_keeps_its_end(self) -> None:
        """GIVEN one epoch and no steps WHEN the epochs are taken away THEN they stay."""
        config = TrainingConfig()
        with pytest.raises(ValidationError):
            config.epochs = None

        assert config.epochs == 1


def test_a_section_that_is_no_object_is_refused() -> None:
    """A level in place of the section is told what the section must be."""
    with pytest.raises(ValidationError, match="logging"):
        ExperimentConfig(experiment_name="x", logging="INFO")
