"""What this process runs on: how many threads can run at once, and how fast the CPUs go.

Needs the standard library alone, for the runtime asks too. Measures nothing: it reads what the system says, and what
the system does not say stays unsaid.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")
# A quota is whole microseconds of a period that is 1 ms at least, so two CPUs can be written as 1.999.
# https://docs.kernel.org/scheduler/sched-bwc.html
_ROUNDING = 1e-3
# What the kernel writes for a limit: a u64 above 0. "max" and -1 are none, and 0 is never accepted.
_COUNT = re.compile(r"[1-9][0-9]{0,19}")
# The places where distributions mount the v1 controller; its name in /proc/self/cgroup is tried before.
_V1_MOUNTS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
_KHZ_PER_MHZ = 1000


@dataclass(frozen=True, slots=True)
class CpuAllowance:
    """How much of the machine this process may use.

    Attributes:
        host: CPUs of the machine.
        affinity: CPUs that this process may run on (`taskset`, `--cpuset-cpus`).
        quota: CPU seconds per second that its cgroups grant it (`--cpus`, `limits.cpu`); None if they set no limit.
    """

    host: int
    affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """How many threads can really run at once; 1 at least.

        A fraction of a CPU is rounded down, as automaxprocs does (uber-go/automaxprocs#13) and golang/go#76835 asks of
        Go, where the JVM and loky round up. The threads of a model run wait for one another: one that is throttled
        until the next period, 100 ms as a rule, holds up the answer, while a fraction left over costs only itself.
        """
        if self.quota is None:
            return max(1, self.affinity)
        return max(1, min(self.affinity, math.floor(self.quota + _ROUNDING)))


def cpu_allowance(proc: Path = PROC, cgroups: Path = CGROUPS) -> CpuAllowance:
    """Read how much of the machine this process may use; the folders are parameters for tests alone."""
    affinity = len(_usable_numbers())
    quotas = [*_quotas_v2(proc, cgroups), *_quotas_v1(proc, cgroups)]
    return CpuAllowance(max(os.cpu_count() or 1, affinity), affinity, min(quotas, default=None))


def usable_cpus() -> int:
    """Count the threads that this process can run at once, which may be fewer than the machine has CPUs."""
    return cpu_allowance().usable


def _usable_numbers() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _quotas_v2(proc: Path, cgroups: Path) -> Iterator[float]:
    """Give the limits in the unified hierarchy, which lies beside the others on a system that has both."""
    path = next((path for controllers, path in _memberships(proc) if not controllers), "/")
    for mount in (cgroups, cgroups / "unified"):
        for group in _groups(mount, path):
            quota, period, *_ = [*_read(group / "cpu.max").split(), "", ""]
            yield from _cpus(quota, period)


def _quotas_v1(proc: Path, cgroups: Path) -> Iterator[float]:
    """Give the limits in the hierarchy of the `cpu` controller, if it is that of version 1."""
    for controllers, path in _memberships(proc):
        if "cpu" in controllers:
            for name in dict.fromkeys((",".join(controllers), *_V1_MOUNTS)):
                for group in _groups(cgroups / name, path):
                    yield from _cpus(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _memberships(proc: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Give the controllers of each hierarchy, none for the unified one, and this process's cgroup in it (cgroups(7))."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            yield tuple(filter(None, controllers.split(","))), path


def _groups(mount: Path, path: str) -> Iterator[Path]:
    """Give the folders of a cgroup and of every group around it that is visible: the smallest limit on the way counts.

    Reading only the mount misses the groups of systemd (joblib/loky#634), reading only the group itself the limit of a
    pod or slice around it (spiceai/spiceai#12299). In a container the path may be the host's, whose first parts, or
    all of them, are not below the mount; then what is left of it is looked for, as the JVM does (JDK-8343191). A path
    out of the container's view (`/../x`) leaves the mount, the nearest group that can be seen.
    """
    parts = PurePosixPath(path.lstrip("/")).parts
    if ".." in parts:
        parts = ()
    own = next((left for first in range(len(parts)) if _is_folder(left := mount.joinpath(*parts[first:]))), mount)
    for group in (own, *own.parents):
        yield group
        if group == mount:
            return


def _cpus(quota: str, period: str) -> Iterator[float]:
    """Give the CPUs that a quota grants, if it is one.

    Anything but two counts is no quota, an empty file too (joblib/loky#478). The kernel writes these files, so it would
    be a later kernel's form or another file system in that place; no reason to refuse to run, nor to guess a limit.
    """
    if _COUNT.fullmatch(quota.strip()) and _COUNT.fullmatch(period.strip()):
        yield int(quota) / int(period)


@dataclass(frozen=True, slots=True)
class CpuFrequency:
    """How fast the usable CPUs go at a moment, in MHz: the slowest and the fastest of them.

    A virtual machine says what its host told it, which may never change. `governor` is empty where the system has
    none, and names all of them where CPUs differ.
    """

    governor: str
    lowest_mhz: float
    highest_mhz: float

    def __str__(self) -> str:
        """Write it as people read it."""
        speed = f"{self.lowest_mhz:.0f}"
        if f"{self.highest_mhz:.0f}" != speed:
            speed += f" to {self.highest_mhz:.0f}"
        return f"{speed} MHz" + (f" ({self.governor})" if self.governor else "")


def cpu_frequency(proc: Path = PROC, cpus: Path = CPUS, numbers: Collection[int] | None = None) -> CpuFrequency | None:
    """Read how fast the usable CPUs go now; None where the system does not say.

    Args:
        proc: where the kernel's `cpuinfo` is, for machines without frequency scaling.
        cpus: where the CPUs' folders are.
        numbers: the CPUs to ask; by default those that this process may run on.
    """
    asked = sorted(_usable_numbers() if numbers is None else numbers)
    folders = [cpus / f"cpu{number}" / "cpufreq" for number in asked]
    governors = {_read(folder / "scaling_governor").strip() for folder in folders} - {""}
    scaled = [int(text) for folder in folders if _COUNT.fullmatch(text := _read(folder / "scaling_cur_freq").strip())]
    found = [khz / _KHZ_PER_MHZ for khz in scaled] or list(_speeds_in_cpuinfo(proc, asked))
    return CpuFrequency(", ".join(sorted(governors)), min(found), max(found)) if found else None


def _speeds_in_cpuinfo(proc: Path, numbers: Collection[int]) -> Iterator[float]:
    number = ""
    for name, value in _cpuinfo(proc):
        if name == "processor":
            number = value
        elif name == "cpu MHz" and number in map(str, numbers) and re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", value):
            yield float(value)


def machine_facts() -> dict[str, str]:
    """Say what machine this is and how much of it this process may use."""
    allowance = cpu_allowance()
    return {
        "machine": platform.machine(),
        "processor": _processor(PROC),
        "system": platform.platform(),
        "cpus": str(allowance.host),
        "cpu_quota": "none" if allowance.quota is None else f"{allowance.quota:g}",
        "usable_cpus": str(allowance.usable),
    }


def _processor(proc: Path) -> str:
    named = (value for name, value in _cpuinfo(proc) if name == "model name")
    return next(named, "") or platform.processor() or "unknown"


def _cpuinfo(proc: Path) -> Iterator[tuple[str, str]]:
    for line in _read(proc / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or with a null in it
        return False


def _read(path: Path) -> str:
    """Read what the kernel says; nothing where there is no such file, or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
