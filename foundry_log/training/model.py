"""A small transformer that predicts the next token."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from foundry_log.config import ModelConfig


class LanguageModel(nn.Module):
    """Tokens of shape (batch, length) to logits of shape (batch, length, vocab_size).

    A decoder-only transformer with learned positions and normalisation before each part
    (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

    Args:
        config: the shape.
        vocab_size: number of tokens.
        max_length: longest sequence in tokens.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, max_length: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_length, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.apply(_initialise)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the logits of the token after each position.

        With `targets`, those tokens: the mean cross-entropy in nats per token.
        """
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Block(nn.Module):
    """Causal self-attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_heads
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, of shape (batch, length, width), with both parts added."""
        x = x + self._attend(self.attention_norm(x))
        out: Tensor = x + self.mlp(x)
        return out

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.attention_in(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        out: Tensor = self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def parameter_count(model: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_norms(model: nn.Module) -> dict[str, float]:
    """Return the 2-norm of each parameter and of its gradient, as `weight_norm/…`, `grad_norm/…`.

    Waits for the device once.
    """
    norms = {}
    for name, parameter in model.named_parameters():
        norms[f"weight_norm/{name}"] = parameter.detach().norm()
        if parameter.grad is not None:
            norms[f"grad_norm/{name}"] = parameter.grad.norm()
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))
