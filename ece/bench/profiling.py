"""Measure what a piece of work costs, and what the device could do at best."""

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

PROCESS = Path("/proc") / "self"
STATUS, CLEAR = PROCESS / "status", PROCESS / "clear_refs"


def measured(work: Callable[[], Any], device: torch.device) -> tuple[Any, float, int | None]:
    """Run `work`; returns its result, its wall time in seconds, and the peak of memory in bytes.

    The peak is the device's, or on a CPU under Linux the process's; None elsewhere.
    """
    gc.collect()
    _reset_peak(device)
    began = _now(device)
    result = work()
    return result, _now(device) - began, _bytes(device, "max_memory_allocated", "VmHWM")


def resident(device: torch.device) -> int | None:
    """Return the bytes in use now, on the device or by the process."""
    return _bytes(device, "memory_allocated", "VmRSS")


def _now(device: torch.device) -> float:
    """Read the clock once the device has finished everything in its queue."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    return time.perf_counter()


def _reset_peak(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).reset_peak_memory_stats(device)
    elif CLEAR.exists():
        with suppress(OSError):  # a sandbox may forbid it; the peak is then the process's so far
            CLEAR.write_text("5")


def _bytes(device: torch.device, counter: str, field: str) -> int | None:
    """Read a counter of the device's memory, or a field of the process's status file."""
    if device.type != "cpu":
        return getattr(torch.get_device_module(device), counter)(device)
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)


def counted(work: Callable[[], Any]) -> int:
    """Count the floating-point operations of matrix products in `work` (a multiply-add is two)."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def ceiling(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 5) -> float:
    """Return the best FLOP/s of several products of two `[size, size]` matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = [measured(lambda: a @ b, device)[1] for _ in range(repeats + 1)]
    return 2 * size**3 / min(seconds[1:])  # the first is a warm-up
