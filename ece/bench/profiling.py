"""Measure what a piece of work costs, and what the device could do at best."""

import gc
import time
from collections.abc import Callable
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
    synchronize(device)
    began = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - began, _bytes(device, "max_memory", "VmHWM")


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished everything in its queue."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def resident(device: torch.device) -> int | None:
    """Return the bytes in use now, on the device or by the process."""
    return _bytes(device, "memory", "VmRSS")


def _reset_peak(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).reset_peak_memory_stats(device)
    elif CLEAR.exists():
        try:
            CLEAR.write_text("5")
        except OSError:  # a sandbox may forbid it; the peak is then that of the process so far
            return


def _bytes(device: torch.device, kind: str, field: str) -> int | None:
    """Read a counter of the device's memory, or a field of the process's status file."""
    if device.type != "cpu":
        return getattr(torch.get_device_module(device), f"{kind}_allocated")(device)
    if not STATUS.exists():
        return None
    lines = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return 1024 * int(lines[0].split()[1]) if lines else None


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
