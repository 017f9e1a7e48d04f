"""Model FLOPs utilisation: the formula of the paper, and what the data sheets say."""

from __future__ import annotations

import pytest

from foundry_log.training.flops import flops_per_token, peak_flops

pytestmark = pytest.mark.unit

TERA = 1e12


def test_flops_per_token_are_those_of_the_paper() -> None:
    """6 N + 12 L H Q T of PaLM 540B: 118 layers, 48 heads of 256, 2,048 tokens."""
    per_token = flops_per_token(540_350_000_000, 118, 48 * 256, 2048)
    assert per_token == 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048
    # The paper's table 3: 238.3 thousand tokens a second on 6,144 TPU v4 of 275 TFLOPS are 46.2 %.
    assert 238_300 * per_token / (6144 * 275 * TERA) == pytest.approx(0.462, abs=0.001)


@pytest.mark.parametrize("name", ["parameters", "layers", "hidden", "length"])
def test_a_size_below_zero_is_refused(name: str) -> None:
    """By its name."""
    sizes = {"parameters": 1, "layers": 1, "hidden": 1, "length": 1, name: -1}
    with pytest.raises(ValueError, match=f"{name}=-1 must be 0 or more"):
        flops_per_token(**sizes)


@pytest.mark.parametrize(
    ("device", "dtype", "tera_flops"),
    [
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla V100-PCIE-32GB", "float32", 14),
        ("Tesla T4", "float16", 65),
        ("NVIDIA A10", "bfloat16", 125),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA A100-PCIE-40GB", "float32", 19.5),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA GeForce RTX 3090", "bfloat16", 71),
        ("NVIDIA GeForce RTX 4090", "float16", 165.2),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA B200", "bfloat16", 2250),
    ],
)
def test_known_gpus_have_their_dense_peak(device: str, dtype: str, tera_flops: float) -> None:
    """By the names that CUDA gives them, and with torch's names of types too."""
    assert peak_flops(device, dtype) == pytest.approx(tera_flops * TERA)
    assert peak_flops(device, f"torch.{dtype}") == peak_flops(device, dtype)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("Tesla T4", "bfloat16"),
        ("Tesla V100-SXM2-16GB", "tf32"),
        ("NVIDIA H100 80GB HBM3", "int8"),
        ("NVIDIA A10G", "bfloat16"),
        ("NVIDIA GeForce RTX 3090 Ti", "float16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "float16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16"),
        ("NVIDIA GB200", "bfloat16"),
        ("AMD Instinct MI300X", "bfloat16"),
        ("", ""),
    ],
)
def test_what_is_not_known_is_none(device: str, dtype: str) -> None:
    """Not the figure of a device with a similar name."""
    assert peak_flops(device, dtype) is None
