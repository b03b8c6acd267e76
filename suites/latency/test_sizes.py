"""How much has to be installed to answer: what an image, a download or a cold disk has to carry.

The same for every variant, so it is measured once a release.
"""

from __future__ import annotations

from harness.evidence import Unit
from harness.installed import InstalledSize, pytorch_install, runtime_install
from harness.plugin import RecordMeasure
from harness.serving import Runtime

LARGEST = 10
_DIGITS = 2


def test_sizes_of_installs(runtime: Runtime, record_measure: RecordMeasure) -> None:
    """MiB on disk of the runtime, and of the runtime with PyTorch; the one as a share of the other.

    Both are counted in the environment that judges, so they are of the same versions.
    """
    extras = () if runtime is Runtime.ONNXRUNTIME else (runtime.value,)
    served, pytorch = runtime_install(*extras), pytorch_install()
    record_measure("runtime_install_mib", served.mib, unit=Unit.MEBIBYTE, details=details_of(served))
    record_measure("pytorch_install_mib", pytorch.mib, unit=Unit.MEBIBYTE, details=details_of(pytorch))
    both = {"runtime_mib": round(served.mib, _DIGITS), "pytorch_mib": round(pytorch.mib, _DIGITS)}
    record_measure("install_size_ratio", served.mib / pytorch.mib, unit=Unit.RATIO, details=both)


def details_of(install: InstalledSize) -> dict[str, object]:
    """Name what weighs most, and what is needed and was not there to be counted."""
    largest = {one.name: round(one.mib, _DIGITS) for one in install.distributions[:LARGEST]}
    return {
        "distributions": len(install.distributions),
        "largest_mib": largest,
        "missing": list(install.missing),
    }
