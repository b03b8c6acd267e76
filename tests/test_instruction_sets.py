"""`harness.instruction_sets`: what a system says about its CPU, read without that system, and which releases fit it."""

from __future__ import annotations

import pytest

from harness.errors import ArtifactError
from harness.instruction_sets import (
    OVERRIDE,
    PRESETS,
    SAFE_FOR_ANY_WEIGHTS,
    Cpu,
    InstructionSet,
    WeightRange,
    check_cpu,
    cpu_of,
    entry_of_target,
    needs_exact_products,
    preset_for,
    this_cpu,
)

_AVX512 = "avx2 fma avx512f avx512bw avx512dq avx512vl avx512cd"
# What the kernels of such machines write, shortened to flags that could matter.
FLAGS = {
    "haswell": ("sse4_2 avx fma avx2 bmi2", {"avx2"}),
    "skylake-x": (_AVX512, {"avx2", "avx512"}),
    "ice lake": (f"{_AVX512} avx512_vnni", {"avx2", "avx512", "avx512_vnni"}),
    "sapphire rapids": (
        f"{_AVX512} avx512_vnni avx_vnni amx_tile amx_int8",
        {"avx2", "avx512", "avx512_vnni", "avx_vnni", "amx_int8"},
    ),
    "alder lake": ("avx2 fma avx_vnni", {"avx2", "avx_vnni"}),
    "knights mill: AVX-512 without BW, DQ and VL": ("avx2 fma avx512f avx512_vnni", {"avx2"}),
    "avx_vnni hidden behind AVX-512, whose kernel onnxruntime takes": (f"{_AVX512} avx_vnni", {"avx2", "avx512"}),
    "no FMA: onnxruntime takes SSE kernels": ("avx2", set()),
    "nehalem": ("sse4_2", set()),
}
NEEDS_VNNI = {"safe_on_every": False, "needs_one_of": ["avx512_vnni", "avx_vnni", "arm64"], "largest_pair": 254}
HASWELL = Cpu("x86_64", frozenset({InstructionSet.AVX2}))
UNKNOWN = Cpu("x86_64", frozenset({InstructionSet.AVX2}), frozenset({InstructionSet.AVX512_VNNI}))


def linux(tmp_path, text, machine="x86_64"):
    path = tmp_path / "cpuinfo"
    path.write_text(text, encoding="utf-8")
    return cpu_of("Linux", machine, cpuinfo=path)


def names(cpu):
    return {found.value for found in cpu.has}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_of_x86(name, tmp_path):
    """The flags of a CPU give the instruction sets whose kernels onnxruntime takes on it."""
    flags, expected = FLAGS[name]
    cpu = linux(tmp_path, f"processor\t: 0\nmodel name\t: {name}\nflags\t\t: {flags}\n\n" * 2)
    assert names(cpu) == expected
    assert not cpu.unknown
    assert cpu.adds_in_32_bits is bool(expected & {"avx512_vnni", "avx_vnni"})


def test_features_of_arm(tmp_path):
    """ARM's features count where every core has them: a thread may run on any."""
    big, little = "fp asimd asimdhp asimddp i8mm", "fp asimd asimddp"
    cpu = linux(tmp_path, f"processor : 0\nFeatures : {big}\n\nprocessor : 1\nFeatures : {little}\n", "aarch64")
    assert names(cpu) == {"arm64", "arm64_dotprod"}
    assert cpu.adds_in_32_bits
    old = linux(tmp_path, "Features : fp asimd evtstrm\n", "aarch64")
    assert names(old) == {"arm64"}


@pytest.mark.parametrize("text", ["", "processor : 0\n", "\0\xff"])
def test_a_system_that_says_nothing(text, tmp_path):
    """Where /proc/cpuinfo has no flags, everything is unknown and nothing is had."""
    cpu = linux(tmp_path, text)
    assert not cpu.has
    assert set(SAFE_FOR_ANY_WEIGHTS[:2]) <= cpu.unknown
    assert cpu_of("Linux", "x86_64", cpuinfo=tmp_path / "missing") == cpu
    assert cpu_of("FreeBSD", "amd64") == cpu


def test_macos():
    """Macs tell of AVX-512 but not of VNNI, and of ARM's features by name."""
    intel = {"hw.optional.avx2_0": 1, "hw.optional.fma": 1} | {
        f"hw.optional.avx512{part}": 1 for part in ("f", "bw", "dq", "vl")
    }
    cpu = cpu_of("Darwin", "x86_64", sysctl=intel.get)
    assert names(cpu) == {"avx2", "avx512"}
    assert InstructionSet.AVX512_VNNI in cpu.unknown
    assert cpu_of("Darwin", "x86_64", sysctl={}.get) == Cpu("x86_64", frozenset())
    m1 = cpu_of("Darwin", "arm64", sysctl={"hw.optional.arm.FEAT_DotProd": 1}.get)
    assert names(m1) == {"arm64", "arm64_dotprod"}


def test_windows():
    """Windows tells of AVX2 and of ARM's dot product; VNNI is unknown, but not where there is no AVX2."""
    cpu = cpu_of("Windows", "AMD64", windows=lambda number: number == 40)
    assert (cpu.architecture, names(cpu)) == ("x86_64", {"avx2"})
    assert {InstructionSet.AVX512_VNNI, InstructionSet.AVX_VNNI} <= cpu.unknown
    assert not cpu_of("Windows", "AMD64", windows=lambda _: False).unknown
    assert names(cpu_of("Windows", "ARM64", windows=lambda number: number == 43)) == {"arm64", "arm64_dotprod"}


def test_what_fits_is_let_through():
    """Nothing said, safe weights, or a CPU with one of the instruction sets: no objection."""
    check_cpu({}, "INT8", HASWELL)
    check_cpu({"safe_on_every": True, "needs_one_of": [], "largest_pair": 128, "why": ""}, "INT8", HASWELL)
    for name in SAFE_FOR_ANY_WEIGHTS:
        check_cpu(NEEDS_VNNI, "INT8", Cpu("any", frozenset({name})))


@pytest.mark.parametrize(
    ("entry", "cpu", "words"),
    [
        (NEEDS_VNNI, HASWELL, ("INT8 of /r", "avx512_vnni or avx_vnni or arm64", "x86_64 with avx2", "--target avx2")),
        (NEEDS_VNNI, UNKNOWN, ("does not tell", f"{OVERRIDE}=avx512_vnni")),
        ({**NEEDS_VNNI, "needs_one_of": ["avx1024"]}, UNKNOWN, ("avx1024", "x86_64 with avx2")),
        ({**NEEDS_VNNI, "needs_one_of": []}, UNKNOWN, ("nothing that it names",)),
        ({**NEEDS_VNNI, "why": "two\nlines"}, HASWELL, ("(two lines)",)),
        ({"safe_on_every": "yes"}, HASWELL, ("entry cpu is", "Release again")),
        ({"safe_on_every": False, "needs_one_of": "avx2"}, HASWELL, ("entry cpu is",)),
        ({"needs_one_of": ["avx2"]}, HASWELL, ("entry cpu is",)),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(entry, cpu, words):
    """Another CPU, one that is not known, a name from the future, or an entry that cannot be read: one clear line."""
    with pytest.raises(ArtifactError) as caught:
        check_cpu(entry, "INT8 of /r", cpu)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.fixture
def fresh_answer():
    this_cpu.cache_clear()
    yield
    this_cpu.cache_clear()


def test_whoever_knows_better_says_so(monkeypatch, fresh_answer):
    """HARNESS_CPU stands where the system does not tell; nonsense in it is refused, not passed over."""
    monkeypatch.setenv(OVERRIDE, "avx2, avx512_vnni")
    assert {InstructionSet.AVX2, InstructionSet.AVX512_VNNI} <= this_cpu().has
    check_cpu(NEEDS_VNNI, "INT8")
    for nonsense in ("vnni", "avx2,vnni", ","):
        monkeypatch.setenv(OVERRIDE, nonsense)
        this_cpu.cache_clear()
        with pytest.raises(ArtifactError, match="names no instruction sets"):
            this_cpu()


def test_this_machine_is_read(monkeypatch, fresh_answer):
    """The tests' own machine gives an answer without an error."""
    monkeypatch.delenv(OVERRIDE, raising=False)
    assert this_cpu().architecture


@pytest.mark.parametrize(
    ("has", "name"),
    [
        ({InstructionSet.AVX2}, "avx2"),
        (set(), "avx2"),
        ({InstructionSet.AVX2, InstructionSet.AVX512}, "avx512"),
        ({InstructionSet.AVX2, InstructionSet.AVX_VNNI}, "avx512_vnni"),
        ({InstructionSet.ARM64}, "arm64"),
    ],
)
def test_the_preset_of_a_cpu(has, name):
    """Each CPU gets the preset that is right on it."""
    cpu = Cpu("any", frozenset(has))
    preset = preset_for(cpu)
    assert preset.name == name
    check_cpu(entry_of_target(preset.name), "INT8", cpu)


def test_only_presets_with_limited_weights_are_for_every_cpu():
    """A preset names the CPUs that it needs exactly where it lets weights have their full range."""
    for preset in PRESETS:
        assert bool(preset.needs) is (preset.weights is WeightRange.FULL)
        assert preset.why
        assert preset.sources
        assert all(name.adds_in_32_bits for name in preset.needs)
    assert entry_of_target("sse9") == entry_of_target(None) == entry_of_target(["avx2"]) == {}


def test_who_needs_exact_products():
    """x86 that clamps, or may, and weights that allow it; nobody else pays for the slower kernels."""
    vnni = Cpu("x86_64", frozenset({InstructionSet.AVX2, InstructionSet.AVX_VNNI}))
    arm = Cpu("arm64", frozenset({InstructionSet.ARM64}))
    for cpu, needed in (
        (HASWELL, True),
        (UNKNOWN, True),
        (vnni, False),
        (arm, False),
        (Cpu("riscv64", frozenset()), False),
    ):
        assert needs_exact_products(NEEDS_VNNI, cpu) is needed
        assert not needs_exact_products({"safe_on_every": True}, cpu)
        assert not needs_exact_products({}, cpu)
