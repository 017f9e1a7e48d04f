"""Model FLOPs utilisation: what a model's training needs of what the device could do at best."""

from __future__ import annotations

import re

_TERA = 1e12

# Tera-FLOPs a second of dense matrix products, for float32, tf32, float16, bfloat16; None for what
# the device has no tensor cores for. Sources: NVIDIA's data sheets of each product, and for GeForce
# the white papers "NVIDIA Ampere GA102" and "NVIDIA Ada" (float16 with float32 accumulation). They
# print the figures with sparsity, which are twice these. Names are those that CUDA gives.
_PEAKS: tuple[tuple[str, tuple[float | None, ...]], ...] = (
    (r"V100-SXM\d-\d+GB", (15.7, None, 125, None)),
    (r"V100-PCIE-\d+GB", (14, None, 112, None)),
    (r"V100S-PCIE-\d+GB", (16.4, None, 130, None)),
    (r"T4", (8.1, None, 65, None)),
    (r"A10", (31.2, 62.5, 125, 125)),
    (r"A100-(SXM4|PCIE|PCIe)-\d+GB|A100 \d+GB PCIe", (19.5, 156, 312, 312)),
    (r"L4", (30.3, 60, 121, 121)),
    (r"L40S", (91.6, 183, 362, 362)),
    (r"RTX 3090", (35.6, 35.6, 71, 71)),
    (r"RTX 4090", (82.6, 82.6, 165.2, 165.2)),
    (r"H100 \d+GB HBM3", (67, 494.7, 989.4, 989.4)),
    (r"H100 PCIe|H100 80GB HBM2e", (51, 378, 756.5, 756.5)),
    (r"H100 NVL|H200 NVL", (60, 417.5, 835.5, 835.5)),
    (r"H200", (67, 494.7, 989.4, 989.4)),
    (r"B200", (75, 1100, 2250, 2250)),
)
_DTYPES = ("float32", "tf32", "float16", "bfloat16")
_MAKER = re.compile(r"^(NVIDIA |Tesla |GeForce )*")


def flops_per_token(parameters: int, layers: int, hidden: int, length: int) -> float:
    """Return the FLOPs of one token's forward and backward pass: 6 N + 12 L H T.

    Recomputed activations do not count. Source: Chowdhery et al. 2022, "PaLM: Scaling Language
    Modeling with Pathways", appendix B.

    Args:
        parameters: N, those that are used for each token; embeddings that are only looked up may
            be left out.
        layers: L, blocks with attention.
        hidden: H, width of the attention, all heads together.
        length: T, tokens of a sequence.

    Raises:
        ValueError: one is below 0.
    """
    given = {"parameters": parameters, "layers": layers, "hidden": hidden, "length": length}
    for name, value in given.items():
        if value < 0:
            raise ValueError(f"{name}={value!r} must be 0 or more")
    return 6.0 * parameters + 12.0 * layers * hidden * length


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Return the FLOPs a second of dense matrix products that the maker states; None if unknown.

    Args:
        device_name: as of `torch.cuda.get_device_name`. A slice of a GPU (MIG) is unknown.
        dtype: `float32`, `tf32`, `float16` or `bfloat16`, also with `torch.` before it. Products
            of float32 run as tf32 where `torch.backends.cuda.matmul.allow_tf32` is set.
    """
    name, kind = _MAKER.sub("", device_name), dtype.removeprefix("torch.")
    if kind not in _DTYPES:
        return None
    for pattern, peaks in _PEAKS:
        if re.fullmatch(pattern, name):
            peak = peaks[_DTYPES.index(kind)]
            return None if peak is None else peak * _TERA
    return None
