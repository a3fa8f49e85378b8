"""What a piece of work costs: seconds, counted FLOPs, peak memory; and what the device could do."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

PROCESS = Path("/proc") / "self"
STATUS, CLEAR = PROCESS / "status", PROCESS / "clear_refs"


@dataclass(frozen=True)
class Cost:
    """One run of a piece of work."""

    seconds: float
    """Wall time, the device's queue emptied."""
    peak: int | None
    """Most bytes held during it on the device, or by the process (CPU, Linux); else None."""


def measured(work: Callable[[], Any], device: torch.device) -> tuple[Any, Cost]:
    """`work()` and what it cost."""
    gc.collect()
    _forget_peak(device)
    settle(device)
    began = time.perf_counter()
    result = work()
    settle(device)
    return result, Cost(time.perf_counter() - began, _peak(device))


def settle(device: torch.device) -> None:
    """Wait until everything queued on the device is done."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).reset_peak_memory_stats(device)
    elif CLEAR.exists():
        try:
            CLEAR.write_text("5")
        except OSError:  # a sandbox may forbid it; the peak then is that of the process so far
            return


def _peak(device: torch.device) -> int | None:
    if device.type != "cpu":
        return torch.get_device_module(device).max_memory_allocated(device)
    return _status("VmHWM")


def resident(device: torch.device) -> int | None:
    """Bytes held now."""
    if device.type != "cpu":
        return torch.get_device_module(device).memory_allocated(device)
    return _status("VmRSS")


def _status(field: str) -> int | None:
    if not STATUS.exists():
        return None
    lines = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return 1024 * int(lines[0].split()[1]) if lines else None


def counted(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in `work()` (a multiply-add is two)."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def ceiling(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 5) -> float:
    """FLOP/s of the best of some products of two `[size, size]` matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(repeats + 1):  # the first warms up
        _, cost = measured(lambda: a @ b, device)
        best = max(best, 2 * size**3 / cost.seconds)
    return best
