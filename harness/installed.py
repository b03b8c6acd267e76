"""How much an install weighs: distributions and everything that they need, in bytes on disk.

Looks at what is installed here, and installs nothing. Whether versions fit each other is pip's affair. Needs
`packaging`, so the runtime does not ask this.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from harness.documents import parse_json
from harness.errors import HarnessError, one_line

RUNTIME = "ner-release-harness"
# What `use_onnx=False` imports beside the runtime (harness/reference.py). Not the `release` extra: most of it is for
# exporting and judging, and would make the runtime look lighter than it is beside a service that answers with PyTorch.
PYTORCH = ("torch", "transformers")
_BYTES_PER_MIB = 2**20
_BYTECODE = "__pycache__"


class InstallError(HarnessError):
    """What is installed here does not say what belongs to it."""


@dataclass(frozen=True, slots=True)
class DistributionSize:
    """What one distribution adds to an install."""

    name: str
    size_bytes: int

    @property
    def mib(self) -> float:
        """The same in MiB."""
        return self.size_bytes / _BYTES_PER_MIB


@dataclass(frozen=True, slots=True)
class InstalledSize:
    """An install: its distributions, the largest first, and the names of those that it needs and that are not here."""

    distributions: tuple[DistributionSize, ...]
    missing: tuple[str, ...]

    @property
    def mib(self) -> float:
        """All of it."""
        return sum(one.size_bytes for one in self.distributions) / _BYTES_PER_MIB


def runtime_install(*extras: str) -> InstalledSize:
    """Weigh what a release is served with, and the packages named if it is served with these too."""
    return installed_size(RUNTIME, *extras)


def pytorch_install() -> InstalledSize:
    """Weigh what a checkpoint is served with: the runtime, which is the same package, and PyTorch and transformers."""
    return installed_size(RUNTIME, *PYTORCH)


def installed_size(*requirements: str) -> InstalledSize:
    """Weigh distributions and everything that they depend on, each of them and each file once.

    Counted are the files that the installer wrote down (RECORD), with the bytecode if it is among them, at their size
    on disk; files that are gone and symbolic links are not. Markers are those of this environment. An editable install
    lists no modules: its packages are those that its entry points name, counted as they lie, without bytecode.

    Args:
        requirements: as pip takes them, such as `torch` or `ner-release-harness[release]`; versions are not compared.

    Raises:
        InstallError: one of these is not installed, or a distribution does not say what it needs or which files it has.
    """
    needed, missing = _needed(requirements)
    counted: set[tuple[int, int]] = set()
    sizes = [DistributionSize(name, _new_bytes(_files(name, found), counted)) for name, found in needed.items()]
    return InstalledSize(tuple(sorted(sizes, key=lambda one: (-one.size_bytes, one.name))), missing)


def _needed(requirements: Iterable[str]) -> tuple[dict[str, Distribution], tuple[str, ...]]:
    """Find the distributions, nearest first, and name those that are not installed."""
    asked = [_requirement(text, "a caller") for text in requirements]
    found: dict[str, Distribution | None] = {}
    seen: set[tuple[str, str]] = set()
    waiting = deque(asked)
    while waiting:
        requirement = waiting.popleft()
        name = canonicalize_name(requirement.name)
        if name not in found:
            found[name] = _distribution(name)
        needing = found[name]
        if needing is None:
            continue
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting.extend(_dependencies(name, needing, extra))
    missing = {name for name, here in found.items() if here is None}
    if absent := missing & {canonicalize_name(one.name) for one in asked}:
        message = f"{', '.join(sorted(absent))} is not installed, so its size is unknown. Install it with pip."
        raise InstallError(message)
    return {name: here for name, here in found.items() if here is not None}, tuple(sorted(missing))


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _dependencies(name: str, needing: Distribution, extra: str) -> Iterator[Requirement]:
    """Give what a distribution needs in this environment, with one of its extras or with none (`""`)."""
    for text in needing.requires or ():
        requirement = _requirement(text, name)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def _requirement(text: str, who: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as err:
        message = (
            f"{who} needs {one_line(text, 80)!r}, which is no requirement ({one_line(err, 120)}). Install it again."
        )
        raise InstallError(message) from err


def _files(name: str, found: Distribution) -> Iterator[Path]:
    """Give the files of a distribution, whether they are there or not."""
    listed = found.files
    if listed is None:
        message = (
            f"{name} is installed without a list of its files (RECORD), so its size is unknown. Install it with pip."
        )
        raise InstallError(message)
    for file in listed:
        yield Path(str(found.locate_file(file)))
    if _is_editable(name, found):
        for package in sorted({entry.value.partition(":")[0].partition(".")[0] for entry in found.entry_points}):
            yield from _modules(package)


def _is_editable(name: str, found: Distribution) -> bool:
    """Read whether a distribution was installed as a link to its source (PEP 610)."""
    origin = found.read_text("direct_url.json")
    if origin is None:
        return False
    content = parse_json(origin, f"direct_url.json of {name}")
    folder = content.get("dir_info") if isinstance(content, dict) else None
    return isinstance(folder, dict) and folder.get("editable") is True


def _modules(package: str) -> Iterator[Path]:
    """Give the files in a package's folders, without importing it; a single module is its file."""
    spec = find_spec(package)
    if spec is not None and spec.submodule_search_locations is None and spec.origin is not None:
        yield Path(spec.origin)
    for place in (spec and spec.submodule_search_locations) or ():
        for folder, inner, names in os.walk(place):
            inner[:] = sorted(name for name in inner if name != _BYTECODE)
            yield from (Path(folder, name) for name in sorted(names))


def _new_bytes(files: Iterable[Path], counted: set[tuple[int, int]]) -> int:
    """Add up the files that were not counted before: two distributions may claim one, and links make one of two."""
    total = 0
    for file in files:
        try:
            status = file.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        identity = (status.st_dev, status.st_ino)
        if stat.S_ISREG(status.st_mode) and identity not in counted:
            counted.add(identity)
            total += status.st_size
    return total
