"""How long a run is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foundry_log.config import TrainingConfig


@dataclass(frozen=True)
class Plan:
    """The length of a run."""

    epochs: int
    """Epochs that are begun."""
    steps_per_epoch: int
    total_steps: int

    @classmethod
    def of(cls, config: TrainingConfig, num_examples: int, ranks: int = 1) -> Plan:
        """Return the plan for that many examples, shared by that many ranks.

        Raises:
            ValueError: they are fewer than one step takes.
        """
        needed = examples_per_step(config, ranks)
        if num_examples < needed:
            shared = f" on {ranks} ranks" if ranks > 1 else ""
            raise ValueError(
                f"training.batch_size={config.batch_size} times gradient_accumulation_steps="
                f"{config.gradient_accumulation_steps}{shared} takes {needed} examples a step, and "
                f"the text has {num_examples}; give more text (data.path, data.max_megabytes), a "
                "shorter data.sequence_length or a smaller batch"
            )
        per_epoch = num_examples // needed
        limits = [config.train_steps, config.epochs and config.epochs * per_epoch]
        total = min(limit for limit in limits if limit)
        return cls(math.ceil(total / per_epoch), per_epoch, total)


def examples_per_step(config: TrainingConfig, ranks: int) -> int:
    """Return the examples of one optimizer step, of all ranks together."""
    return config.batch_size * config.gradient_accumulation_steps * ranks
