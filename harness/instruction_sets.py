"""Which instructions this CPU has, as far as they change what an INT8 model answers, and whether a release fits it.

onnxruntime multiplies unsigned activations with signed weights by VPMADDUBSW where a CPU has AVX2 or AVX-512 but no
VNNI, which adds pairs of products in 16 bits and clamps them; see `harness.saturation`. A release whose weights allow
that is right only on CPUs that add in 32 bits, and names them in its manifest.

Decides as onnxruntime does (core/mlas/lib/platform.cpp, `MLAS_PLATFORM`), from what the system says: it runs no CPUID
of its own. What the system does not say is unknown, and unknown does not fit: nobody is told that wrong numbers are
right. Needs the standard library alone, for the runtime asks too.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from harness.errors import ArtifactError, one_line

# Whoever knows better than the system says so here: names of instruction sets, with commas between.
OVERRIDE = "HARNESS_CPU"
# onnxruntime's own way out on x86: with this session option it turns signed weights into unsigned ones when it loads
# a model (optimizer/qdq_transformer/avx2_weight_s8_to_u8.cc), which it multiplies in 16 bits and adds in 32: exact on
# every x86 CPU, and slower, also on those with VNNI. From the optimization level EXTENDED on; below, nothing happens.
EXACT_PRODUCTS = ("session.x64quantprecision", "1")
_CPUINFO = Path("/proc/cpuinfo")


class InstructionSet(Enum):
    """Instructions that onnxruntime has INT8 kernels of their own for, by the names that a manifest uses."""

    AVX2 = "avx2"
    AVX512 = "avx512"
    AVX512_VNNI = "avx512_vnni"
    AVX_VNNI = "avx_vnni"
    AMX_INT8 = "amx_int8"
    ARM64 = "arm64"
    ARM64_DOTPROD = "arm64_dotprod"
    ARM64_I8MM = "arm64_i8mm"

    @property
    def adds_in_32_bits(self) -> bool:
        """Whether the kernels that onnxruntime takes for these add products of signed weights without clamping."""
        return self not in {InstructionSet.AVX2, InstructionSet.AVX512}


# What a release needs one of whose weights may clamp. AMX is not named: every CPU with it has AVX-512 VNNI, which
# onnxruntime uses beside it. The three for ARM64 come down to the first, for which the others are additions.
SAFE_FOR_ANY_WEIGHTS = (InstructionSet.AVX512_VNNI, InstructionSet.AVX_VNNI, InstructionSet.ARM64)
_X86 = frozenset(
    {
        InstructionSet.AVX2,
        InstructionSet.AVX512,
        InstructionSet.AVX512_VNNI,
        InstructionSet.AVX_VNNI,
        InstructionSet.AMX_INT8,
    }
)
_ARM = frozenset({InstructionSet.ARM64_DOTPROD, InstructionSet.ARM64_I8MM})
# Flags of the kernel (x86: arch/x86/include/asm/cpufeatures.h, ARM: arch/arm64/kernel/cpuinfo.c), and what onnxruntime
# asks for before it takes a kernel. AVX-512 is F with BW, DQ and VL ("AVX512 core features" in platform.cpp).
_AVX512_CORE = frozenset({"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"})
_FLAGS = {
    InstructionSet.AVX2: frozenset({"avx2", "fma"}),
    InstructionSet.AVX512: _AVX512_CORE,
    InstructionSet.AVX512_VNNI: _AVX512_CORE | {"avx512_vnni"},
    InstructionSet.AVX_VNNI: frozenset({"avx2", "fma", "avx_vnni"}),
    InstructionSet.AMX_INT8: frozenset({"avx2", "fma", "amx_tile", "amx_int8"}),
    InstructionSet.ARM64_DOTPROD: frozenset({"asimddp"}),
    InstructionSet.ARM64_I8MM: frozenset({"i8mm"}),
}


@dataclass(frozen=True, slots=True)
class Cpu:
    """What is known about a CPU.

    Attributes:
        architecture: `x86_64`, `arm64`, or the system's word for another one.
        has: what it has, of the instruction sets that matter here.
        unknown: what the system does not tell, so that it may have it or not.
    """

    architecture: str
    has: frozenset[InstructionSet]
    unknown: frozenset[InstructionSet] = frozenset()

    @property
    def adds_in_32_bits(self) -> bool:
        """Whether any weights are right on it; false where that is unknown."""
        return bool(self.has & set(SAFE_FOR_ANY_WEIGHTS))

    def __str__(self) -> str:
        """Write it as people read it."""
        names = [found.value for found in InstructionSet if found in self.has and found.value != self.architecture]
        return f"{self.architecture} with {', '.join(names)}" if names else self.architecture


@functools.cache
def this_cpu() -> Cpu:
    """Tell what the CPU of this process has. `HARNESS_CPU` says it where the system does not.

    Raises:
        ArtifactError: `HARNESS_CPU` names no instruction sets.
    """
    stated = os.environ.get(OVERRIDE, "").strip()
    if stated:
        return _stated(stated, platform.machine())
    return cpu_of(platform.system(), platform.machine())


def cpu_of(
    system: str,
    machine: str,
    *,
    cpuinfo: Path = _CPUINFO,
    sysctl: Callable[[str], int | None] | None = None,
    windows: Callable[[int], bool] | None = None,
) -> Cpu:
    """Tell what a CPU has; everything is a parameter, so that tests need no other machine.

    Args:
        system: as `platform.system()` names it.
        machine: as `platform.machine()` names it.
        cpuinfo: the kernel's list, on Linux.
        sysctl: reads a number of the system's by name, on macOS; None where there is none of that name.
        windows: asks `IsProcessorFeaturePresent`, on Windows.
    """
    architecture = _architecture(machine)
    match system:
        case "Linux":
            return cpu_of_cpuinfo(_read(cpuinfo), architecture)
        case "Darwin":
            return _macos(architecture, sysctl or _sysctl)
        case "Windows":
            return _windows(architecture, windows or _windows_feature)
        case _:
            return Cpu(architecture, _always(architecture), _possible(architecture))


def cpu_of_cpuinfo(text: str, architecture: str) -> Cpu:
    """Read the kernel's list of CPUs: `flags` of x86, `Features` of ARM.

    Where CPUs differ (big.LITTLE), only what all of them have counts: a thread may run on any.
    """
    lists = [set(flags.split()) for flags in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)]
    if not lists:
        return Cpu(architecture, _always(architecture), _possible(architecture))
    flags = set.intersection(*lists)
    found = {name for name in _possible(architecture) if flags >= _FLAGS[name]}
    return Cpu(architecture, _always(architecture) | _taken(found))


def _taken(found: set[InstructionSet]) -> frozenset[InstructionSet]:
    """Leave out AVX-VNNI where onnxruntime takes a kernel without it: that for AVX-512, on a CPU that has both."""
    if InstructionSet.AVX512 in found and InstructionSet.AVX512_VNNI not in found:
        return frozenset(found - {InstructionSet.AVX_VNNI})
    return frozenset(found)


def check_cpu(entry: Mapping[str, Any], what: str, cpu: Cpu | None = None) -> None:
    """Refuse a release variant whose numbers are not right on this CPU.

    Args:
        entry: the variant's entry `cpu` in the manifest; an empty one says nothing, and nothing is checked.
        what: the variant, as the message is to name it.
        cpu: the CPU, this one by default.

    Raises:
        ArtifactError: the entry names instruction sets, this CPU has none of them or may have none; or the entry
            cannot be read.
    """
    if not entry:
        return
    safe, needed = entry.get("safe_on_every"), entry.get("needs_one_of", [])
    if not isinstance(safe, bool) or not isinstance(needed, list) or not all(isinstance(name, str) for name in needed):
        message = f"{what}: the manifest's entry cpu is {one_line(repr(dict(entry)), 80)}. Release again."
        raise ArtifactError(message)
    if safe:
        return
    cpu = cpu or this_cpu()
    if not _named(needed) & cpu.has:
        message = _refusal(entry, what, needed, cpu)
        raise ArtifactError(message)


def needs_exact_products(entry: Mapping[str, Any], cpu: Cpu | None = None) -> bool:
    """Tell whether a session is right on this CPU only if it is opened with `EXACT_PRODUCTS`.

    True for x86 that clamps, or may, and weights that it would clamp; such a CPU then needs not be refused.
    """
    cpu = cpu or this_cpu()
    return entry.get("safe_on_every") is False and cpu.architecture == "x86_64" and not cpu.adds_in_32_bits


def _refusal(entry: Mapping[str, Any], what: str, needed: list[str], cpu: Cpu) -> str:
    why = entry.get("why")
    because = f" ({one_line(why, 120)})" if isinstance(why, str) and why else ""
    head = f"{what} is right only on a CPU with {_listed(needed)}{because}"
    if maybe := sorted(name.value for name in _named(needed) & cpu.unknown):
        unknown = f"this system does not tell whether this one ({cpu}) has {_listed(maybe)}"
        return f"{head}, and {unknown}. If it has, set {OVERRIDE}={maybe[0]}."
    return f"{head}, and this one is {cpu}. Release it for every CPU (harness release --target avx2), or see docs/cpu-safety.md."


def _named(names: Iterable[str]) -> set[InstructionSet]:
    """Look names up; one that a newer harness wrote is none that a CPU is known to have."""
    known = {name.value: name for name in InstructionSet}
    return {known[name] for name in names if name in known}


def _listed(names: Iterable[str]) -> str:
    return " or ".join(one_line(name, 40) for name in names) or "nothing that it names"


def _stated(text: str, machine: str) -> Cpu:
    names = [name.strip() for name in text.split(",") if name.strip()]
    found = frozenset(_named(names))
    if len(found) != len(set(names)) or not found:
        known = ", ".join(name.value for name in InstructionSet)
        message = f"{OVERRIDE}={one_line(text, 60)!r} names no instruction sets. Known, with commas between: {known}."
        raise ArtifactError(message)
    return Cpu(_architecture(machine), found | _always(_architecture(machine)))


def _architecture(machine: str) -> str:
    name = machine.lower()
    return {"amd64": "x86_64", "x86-64": "x86_64", "aarch64": "arm64"}.get(name, name)


def _always(architecture: str) -> frozenset[InstructionSet]:
    return frozenset({InstructionSet.ARM64}) if architecture == "arm64" else frozenset()


def _possible(architecture: str) -> frozenset[InstructionSet]:
    if architecture == "x86_64":
        return _X86
    return _ARM if architecture == "arm64" else frozenset()


# macOS tells of AVX2, of AVX-512's parts, and of ARM's features, but has no name for VNNI: no Mac with AVX-512 lacks
# sysctl's hw.optional.avx512f, and some of them (2019 and later) have VNNI, which stays unknown.
# https://developer.apple.com/documentation/kernel/1387446-sysctlbyname/determining_instruction_set_characteristics
_MACOS: Mapping[str, Mapping[InstructionSet, tuple[str, ...]]] = {
    "x86_64": {
        InstructionSet.AVX2: ("hw.optional.avx2_0", "hw.optional.fma"),
        InstructionSet.AVX512: tuple(f"hw.optional.avx512{part}" for part in ("f", "bw", "dq", "vl")),
    },
    "arm64": {
        InstructionSet.ARM64_DOTPROD: ("hw.optional.arm.FEAT_DotProd",),
        InstructionSet.ARM64_I8MM: ("hw.optional.arm.FEAT_I8MM",),
    },
}


def _macos(architecture: str, sysctl: Callable[[str], int | None]) -> Cpu:
    asked = _MACOS.get(architecture, {})
    found = {name for name, keys in asked.items() if all(sysctl(key) for key in keys)}
    unknown = _possible(architecture) - set(asked)
    if InstructionSet.AVX2 in asked and InstructionSet.AVX2 not in found:
        unknown = frozenset()  # VNNI is an addition to AVX2
    return Cpu(architecture, _always(architecture) | frozenset(found), unknown)


def _sysctl(name: str) -> int | None:
    """Read one number with sysctlbyname(3)."""
    value, size = ctypes.c_int64(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int64))
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return None if failed else value.value


# Windows tells of these alone (winnt.h, PF_…), so VNNI stays unknown. AVX-512 is F only there, which is not enough to
# know that onnxruntime takes its kernels for it.
# https://learn.microsoft.com/windows/win32/api/processthreadsapi/nf-processthreadsapi-isprocessorfeaturepresent
_PF_AVX2, _PF_ARM_DOTPROD = 40, 43


def _windows(architecture: str, feature: Callable[[int], bool]) -> Cpu:
    unknown: set[InstructionSet] = set(_possible(architecture))
    found: set[InstructionSet] = set()
    for name, number in ((InstructionSet.AVX2, _PF_AVX2), (InstructionSet.ARM64_DOTPROD, _PF_ARM_DOTPROD)):
        if name in unknown:
            unknown.discard(name)
            found |= {name} if feature(number) else set()
    if architecture == "x86_64" and not found:
        unknown.clear()  # VNNI is an addition to AVX2
    return Cpu(architecture, _always(architecture) | frozenset(found), frozenset(unknown))


def _windows_feature(number: int) -> bool:
    libraries: Any = vars(ctypes)["windll"]  # only Windows has it
    return bool(libraries.kernel32.IsProcessorFeaturePresent(number))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


class WeightRange(Enum):
    """Which weights a recipe may write."""

    FULL = "full"
    """8 bits, -127 to 127."""
    REDUCED = "reduce_range"
    """7 bits, -64 to 64: onnxruntime's `reduce_range`."""
    PAIRS = "pairs"
    """8 bits, but no two neighbours of one sign that add up to more than 128; see `harness.pair_limits`."""


@dataclass(frozen=True, slots=True)
class Preset:
    """What INT8 for one kind of CPU is made of.

    Attributes:
        name: what `--target` calls it.
        needs: instruction sets of which a CPU must have one, for the numbers to be right.
        signed_activations: whether activations are signed.
        weights: which weights may be written; they are signed and symmetric.
        why: the reason.
        sources: where onnxruntime does what the reason says.
    """

    name: str
    needs: tuple[InstructionSet, ...]
    signed_activations: bool
    weights: WeightRange
    why: str
    sources: tuple[str, ...]


_PLATFORM = "onnxruntime/core/mlas/lib/platform.cpp"
_GUIDE = "onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
PRESETS = tuple(
    Preset(*row)
    for row in (
        (
            "every",
            (),
            False,
            WeightRange.PAIRS,
            "right and fast wherever onnxruntime runs; unsigned activations are what x86 has kernels for, and ARM64's take both",
            (_PLATFORM, "onnxruntime/core/mlas/lib/x86_64/QgemmU8X8KernelAvx2.S"),
        ),
        (
            "avx2",
            (),
            False,
            WeightRange.REDUCED,
            "VPMADDUBSW adds pairs in 16 bits, so weights are kept in 7 bits",
            (_PLATFORM, _GUIDE, "onnxruntime#6004"),
        ),
        (
            "avx512",
            (),
            False,
            WeightRange.REDUCED,
            "as avx2: AVX-512 without VNNI has the same instruction on longer vectors",
            (_PLATFORM, "onnxruntime/core/mlas/lib/amd64/SymQgemmU8KernelAvx512.asm"),
        ),
        (
            "avx512_vnni",
            SAFE_FOR_ANY_WEIGHTS,
            False,
            WeightRange.FULL,
            "VPDPBUSD adds in 32 bits, so weights have 8 bits; unsigned weights would take a kernel without it",
            (_PLATFORM,),
        ),
        (
            "arm64",
            SAFE_FOR_ANY_WEIGHTS,
            True,
            WeightRange.FULL,
            "SDOT and SMMLA take signed numbers and add in 32 bits; x86 makes the activations of QDQ models unsigned again",
            (_PLATFORM, "onnxruntime/core/mlas/lib/aarch64/QgemmS8S8KernelNeon.S"),
        ),
    )
)


def preset_for(cpu: Cpu | None = None) -> Preset:
    """Name the preset that a CPU is best served with if it is the only one: what `--target` means by default."""
    cpu = cpu or this_cpu()
    if InstructionSet.ARM64 in cpu.has:
        name = "arm64"
    elif cpu.adds_in_32_bits:
        name = "avx512_vnni"
    else:
        name = "avx512" if InstructionSet.AVX512 in cpu.has else "avx2"
    return next(preset for preset in PRESETS if preset.name == name)


def entry_of_target(target: object) -> dict[str, Any]:
    """Write the entry `cpu` that a release's `--target` stands for, for manifests that have none; empty for no target."""
    found = [preset for preset in PRESETS if preset.name == target]
    if not found:
        return {}
    needed = [name.value for name in found[0].needs]
    return {"safe_on_every": not needed, "needs_one_of": needed, "why": f"quantized for {found[0].name}"}
