"""The weight of installs, on distributions made up in a folder, and of the one that runs these tests."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from harness.installed import DistributionSize, InstallError, installed_size, pytorch_install, runtime_install
from harness.serving import Runtime
from suites.latency import test_sizes

MIB = 2**20


class Site:
    """A folder on `sys.path` with distributions as pip would leave them."""

    def __init__(self, folder):
        self.folder = folder

    def add(self, name, files=None, requires=(), *, record=True, also=(), origin=None, entry_points=""):
        """Install `name` with files of these sizes; `also` is what RECORD lists beyond them."""
        metadata = self.folder / f"{name.replace('-', '_')}-1.dist-info"
        metadata.mkdir()
        lines = [f"Name: {name}", "Metadata-Version: 2.1", "Version: 1", *(f"Requires-Dist: {one}" for one in requires)]
        (metadata / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if entry_points:
            (metadata / "entry_points.txt").write_text(entry_points, encoding="utf-8")
        if origin is not None:
            (metadata / "direct_url.json").write_text(json.dumps(origin), encoding="utf-8")
        for path, size in (files or {}).items():
            place = self.folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"x" * size)
        if record:
            listed = "".join(f"{path},,\n" for path in [*(files or {}), *also])
            (metadata / "RECORD").write_text(listed, encoding="utf-8")
        return self


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "lib" / "site-packages"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder))
    return Site(folder)


def weights(*requirements):
    """Bytes of each distribution of an install."""
    return {one.name: one.size_bytes for one in installed_size(*requirements).distributions}


# -- what belongs to an install --------------------------------------------------------------------------------------


def test_everything_that_is_needed(site):
    """A distribution, what it needs, and what that needs; not what else is installed."""
    site.add("top-x", {"top/a.py": 3}, ["middle-x>=99"]).add("middle-x", {"middle/a.so": 7 * MIB}, ["low.x"])
    site.add("low-x", {"low/a.py": 5}).add("other-x", {"other/a.py": 11})
    found = installed_size("Top_X")
    sizes = (("middle-x", 7 * MIB), ("low-x", 5), ("top-x", 3))
    assert found.distributions == tuple(DistributionSize(name, size) for name, size in sizes)
    assert found.mib == (7 * MIB + 8) / MIB
    assert (found.missing, found.distributions[0].mib) == ((), 7)


def test_circles(site):
    """Distributions that need each other are counted once."""
    site.add("top-x", {"top/a.py": 3}, ["low-x"]).add("low-x", {"low/a.py": 5}, ["top-x"])
    assert weights("top-x", "low-x", "top-x") == {"low-x": 5, "top-x": 3}


def test_markers(site):
    """What another system or another Python would need is not part of this install."""
    never, always = "python_version < '3'", "python_version >= '3'"
    site.add("top-x", {"top/a.py": 3}, [f"never-x; {never}", f"low-x; {always}"])
    site.add("never-x", {"never/a.py": 100}).add("low-x", {"low/a.py": 5})
    assert weights("top-x") == {"low-x": 5, "top-x": 3}


def test_extras(site):
    """An extra adds what it needs, and through an extra that names another too; without it nothing of that."""
    requires = ["low-x; extra == 'Big_One'", "top-x[small]; extra == 'all'", "tiny-x; extra == 'small'"]
    site.add("top-x", {"top/a.py": 3}, requires).add("low-x", {"low/a.py": 5}).add("tiny-x", {"tiny/a.py": 1})
    assert weights("top-x") == {"top-x": 3}
    assert weights("top-x[big-one]") == {"low-x": 5, "top-x": 3}
    assert weights("top-x[all]") == {"top-x": 3, "tiny-x": 1}
    assert weights("top-x", "top-x[small,big-one]") == {"low-x": 5, "top-x": 3, "tiny-x": 1}


def test_what_is_missing(site):
    """A dependency that is not installed is named."""
    site.add("top-x", {"top/a.py": 3}, ["gone-x", "Also.Gone_x", "absent-x; extra == 'y'"])
    found = installed_size("top-x")
    assert found.missing == ("also-gone-x", "gone-x")
    assert [one.name for one in found.distributions] == ["top-x"]


# -- which bytes -----------------------------------------------------------------------------------------------------


def test_a_file_of_two(site):
    """A file that two distributions claim, and a file under two names, count once, for the one nearest to the top."""
    site.add("top-x", {"shared/a.py": 3}, ["low-x"]).add("low-x", {"low/a.py": 5}, also=["shared/a.py", "low/b.py"])
    os.link(site.folder / "low/a.py", site.folder / "low/b.py")
    assert weights("top-x") == {"low-x": 5, "top-x": 3}
    site.add("root-x", {"root/a.py": 1}, ["near-x", "side-x"]).add("side-x", {"side/a.py": 2}, ["far-x"])
    site.add("far-x", {"far/a.py": 4}).add("near-x", {"near/a.py": 8}, also=["far/a.py"])
    assert weights("root-x") == {"near-x": 12, "side-x": 2, "root-x": 1, "far-x": 0}


def test_files_that_are_gone(site):
    """What RECORD lists and is not there weighs nothing, nor does a folder or what lies below a file."""
    site.add("top-x", {"top/a.py": 3}, also=["top/gone.py", "top", "top/a.py/b.py"])
    assert weights("top-x") == {"top-x": 3}


def test_links_are_not_followed(site, tmp_path):
    """A symbolic link weighs nothing, wherever it leads."""
    (tmp_path / "outside").write_bytes(b"x" * 1000)
    site.add("top-x", {"top/a.py": 3}, also=["top/link.py"])
    (site.folder / "top/link.py").symlink_to(tmp_path / "outside")
    assert weights("top-x") == {"top-x": 3}


def test_commands_and_bytecode(site):
    """Commands beside the library, and the bytecode that the installer wrote, are part of it."""
    site.add("top-x", {"top/a.py": 3, "../../bin/top": 20, "top/__pycache__/a.cpython-311.pyc": 6})
    assert weights("top-x") == {"top-x": 29}


def test_files_that_nobody_listed(site):
    """Sizes are those on disk, of the files that RECORD lists: what else lies in a package's folder is not its own."""
    site.add("top-x", {"top/a.py": 3})
    (site.folder / "top/cache.bin").write_bytes(b"x" * 100)
    (site.folder / "top/a.py").write_bytes(b"x" * 4)
    assert weights("top-x") == {"top-x": 4}


@pytest.mark.parametrize(
    ("origin", "size"),
    [
        ({"url": "file:///source", "dir_info": {"editable": True}}, 2 + 40 + 9),
        ({"url": "file:///source", "dir_info": {"editable": False}}, 2),
        ({"url": "https://example.org/top.whl", "archive_info": {}}, 2),
        ({"url": "file:///source", "dir_info": None}, 2),
        ([], 2),
        (None, 2),
    ],
)
def test_editable_installs(site, tmp_path, monkeypatch, origin, size):
    """An editable install weighs what its packages do where they lie, without bytecode; no other install does."""
    source = tmp_path / "source"
    for path, count in {
        "top_x/a.py": 30,
        "top_x/in/b.json": 10,
        "top_x/in/__pycache__/b.pyc": 500,
        "single_x.py": 9,
    }.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(b"#" * count)
    (source / "tests.py").write_bytes(b"#" * 700)
    monkeypatch.syspath_prepend(str(source))
    entry_points = (
        "[console_scripts]\ntop = top_x.in.cli:main\n\n[other]\nb = top_x:B\nc = single_x\nd = no_such_module_x:D\n"
    )
    site.add("top-x", {"_top.pth": 2}, origin=origin, entry_points=entry_points)
    assert weights("top-x") == {"top-x": size}


# -- what is refused -------------------------------------------------------------------------------------------------


def test_an_install_that_is_not_there(site):
    """What is asked about must be installed: nothing weighs 0 because it is not there."""
    site.add("top-x", {"top/a.py": 3})
    with pytest.raises(
        InstallError, match=r"^gone-x is not installed, so its size is unknown\. Install it with pip\.$"
    ):
        installed_size("top-x", "gone-x")


def test_an_install_without_record(site):
    """A distribution without a list of its files has no known size, which is not 0."""
    site.add("top-x", {"top/a.py": 3}, ["low-x"]).add("low-x", {"low/a.py": 5}, record=False)
    with pytest.raises(InstallError, match="low-x is installed without a list of its files"):
        installed_size("top-x")


def test_a_dependency_that_cannot_be_read(site):
    """A dependency that is no requirement is named, with who needs it."""
    site.add("top-x", {"top/a.py": 3}, ["low x == what"])
    with pytest.raises(InstallError, match="top-x needs 'low x == what', which is no requirement"):
        installed_size("top-x")


# -- the installs that there are ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    return runtime_install(), pytorch_install()


def test_the_runtime_without_pytorch(real):
    """A release is served with onnxruntime, tokenizers and numpy, without PyTorch, and weighs less than with it."""
    runtime, pytorch = ({one.name: one.mib for one in found.distributions} for found in real)
    assert {"ner-release-harness", "onnxruntime", "tokenizers", "numpy"} <= runtime.keys() < pytorch.keys()
    assert not {"torch", "transformers", "onnx", "optimum", "pytest"} & runtime.keys()
    assert {"torch", "transformers"} <= pytorch.keys()
    assert not {"onnx", "optimum", "pytest"} & pytorch.keys()
    assert real[0].mib < real[1].mib
    assert runtime["ner-release-harness"] > 0.1  # the modules, not the link to them
    assert all(runtime[name] == pytest.approx(pytorch[name]) for name in runtime)


def test_the_measures(real, monkeypatch):
    """The suite records both installs and their ratio, once, with what is largest in them."""
    monkeypatch.setattr(test_sizes, "runtime_install", lambda: real[0])
    monkeypatch.setattr(test_sizes, "pytorch_install", lambda: replace(real[1], missing=("gone-x",)))
    recorded = {}

    def record(name, value, *, unit, details=None):
        assert name not in recorded
        recorded[name] = (value, unit.value, json.loads(json.dumps(details)))

    test_sizes.test_sizes_of_installs(Runtime.ONNXRUNTIME, record)
    values = {name: entry[0] for name, entry in recorded.items()}
    assert values == {
        "runtime_install_mib": real[0].mib,
        "pytorch_install_mib": real[1].mib,
        "install_size_ratio": real[0].mib / real[1].mib,
    }
    assert [entry[1] for entry in recorded.values()] == ["MiB", "MiB", "ratio"]
    details = recorded["pytorch_install_mib"][2]
    assert len(details["largest_mib"]) == test_sizes.LARGEST
    assert next(iter(details["largest_mib"])) == real[1].distributions[0].name
    assert details["missing"] == ["gone-x"]
