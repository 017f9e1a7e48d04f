"""How good a model is on text that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import torch
import torch.distributed as dist

from foundry_log.config import TrainingConfig
from foundry_log.training.data import Datasets
from foundry_log.training.model import LanguageModel
from foundry_log.training.ranks import Ranks


def evaluate(
    model: LanguageModel,
    data: Datasets,
    config: TrainingConfig,
    device: torch.device,
    ranks: Ranks,
    beat: Callable[[], None] = lambda: None,
) -> float:
    """Return the mean loss, in nats per token, of the first `eval_batches` that were kept back.

    Each rank computes its share of them, and gets the mean over all. `beat` is called before each.
    """
    loss, examples = torch.zeros((), device=device), 0
    batches = islice(data.evaluation.batches(config.batch_size), config.eval_batches)
    model.eval()
    try:
        with torch.inference_mode():
            for tokens, targets in islice(batches, ranks.rank, None, ranks.size):
                beat()
                loss += model(tokens.to(device), targets.to(device)) * len(tokens)
                examples += len(tokens)
    finally:
        model.train()
    if ranks.size == 1:
        return float(loss.item()) / examples
    sums = torch.stack([loss, loss.new_tensor(examples)])
    dist.all_reduce(sums)
    total, count = sums.tolist()
    return float(total) / float(count)
