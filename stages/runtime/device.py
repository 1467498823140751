"""The device: which one, its peak FLOP/s (for model-FLOPs utilisation), its memory, and bitwise reproducibility.

FLOPs per training token = 6 N + 6 L T D: six per parameter that takes part in a matrix product, plus causal attention's
scores and values over half the row on average (Chowdhery et al. 2022, App. B, halved for causality).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gptlife.data.errors import UserError

_PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
    "3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense 16-bit FLOP/s by a part of the device's name, from the vendors' data sheets."""


def best_device(wanted: str | None) -> torch.device:
    """The device called `wanted`; None: the best one available.

    Raises:
        UserError: when it is a CUDA device and torch sees none.
    """
    if wanted is not None:
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device: '{wanted}' wanted, but torch sees no CUDA device; use device: cpu")
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def flops_per_token(model: Any, row_length: int) -> float:
    """Training FLOPs per token of a decoder, forward and backward, in rows of `row_length` tokens."""
    config = model.config
    positions = {"wpe", "positions_embed", "embed_positions"}
    counted = sum(p.numel() for name, p in model.named_parameters() if not positions & set(name.split(".")))
    embedding = model.get_input_embeddings().weight
    if model.get_output_embeddings() is not None and model.get_output_embeddings().weight is not embedding:
        counted -= embedding.numel()
    return 6.0 * counted + 6.0 * config.num_hidden_layers * row_length * config.hidden_size


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s: a known GPU's by its data sheet; a CPU's as a large fp32 matrix product measures it now; or None."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in _PEAKS.items() if part in name), None)
    if device.type != "cpu":
        return None
    side, best = 768, 0.0
    left, right = torch.randn(side, side), torch.randn(side, side)
    for _ in range(5):
        tick = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2.0 * side**3 / (time.perf_counter() - tick))
    return best


@contextmanager
def same_bits() -> Iterator[None]:
    """Inside, only algorithms that give the same bits each time; an operation without one raises torch's RuntimeError.

    On a CPU all algorithms do, for the same number of threads. On a GPU atomic additions don't (in the gradient of an
    embedding or of attention), and cuBLAS needs a workspace of fixed size, which must be set before its first use.
    """
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def described(device: torch.device, deterministic: bool) -> dict[str, Any]:
    """A device as the manifest records it, and whether the same run gives the same bits there.

    For a CPU that includes the vector instructions that torch uses: with others, sums are rounded differently.
    """
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    same = device.type == "cpu" or (deterministic and device.type == "cuda")
    record: dict[str, Any] = {"device": f"{device.type}{name}", "threads": torch.get_num_threads(), "same_bits": same}
    if device.type == "cpu":
        record["instructions"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return record


def peak_gpu_memory_mb(device: torch.device) -> int | None:
    """Peak GPU memory of this process, in MB; None on a CPU."""
    return round(torch.cuda.max_memory_allocated(device) / 2**20) if device.type == "cuda" else None
