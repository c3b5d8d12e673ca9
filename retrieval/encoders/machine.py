"""What this process may use of the machine."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cpus(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Processors that this process may keep busy: its affinity, cut to the container's quota."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cpus = os.cpu_count() or 1
    quota = _quota(cgroups, own)
    return max(1, min(cpus, math.ceil(quota))) if quota else cpus


def _quota(cgroups: Path, own: Path) -> float | None:
    """The smallest processor quota of the control groups around this process; None without one."""
    try:
        unified = [line[3:] for line in own.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        unified = []
    folder = cgroups / unified[0].lstrip("/") if unified else cgroups
    folders = [folder, *(parent for parent in folder.parents if parent.is_relative_to(cgroups))]
    quotas = [quota for folder in folders if (quota := _read(folder / "cpu.max"))]
    if not quotas and (quota := _read(cgroups / "cpu/cpu.cfs_quota_us", cgroups / "cpu/cpu.cfs_period_us")):
        quotas = [quota]  # the older control groups
    return min(quotas, default=None)


def _read(*files: Path) -> float | None:
    try:
        quota, period = (float(word) for file in files for word in file.read_text().split())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None
