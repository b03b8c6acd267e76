"""What a process runs on: cgroups as kernels lay them out, and what is read from anything else."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import machine
from harness.machine import CpuAllowance, CpuFrequency, cpu_allowance, cpu_frequency, machine_facts, usable_cpus

V2 = "0::{}\n"
V1 = "12:cpuset:/else\n4:cpu,cpuacct:{}\n3:cpuacct_not_cpu:/else\n1:name=systemd:/else\n0::/\n"


class Tree:
    """A small /proc and /sys/fs/cgroup."""

    def __init__(self, folder):
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()

    def member(self, text):
        (self.proc / "self" / "cgroup").write_text(text, encoding="utf-8")
        return self

    def v2(self, group, content):
        self._write(self.cgroups / group / "cpu.max", content)
        return self

    def v1(self, group, quota, period="100000", mount="cpu,cpuacct"):
        self._write(self.cgroups / mount / group / "cpu.cfs_quota_us", quota)
        self._write(self.cgroups / mount / group / "cpu.cfs_period_us", period)
        return self

    def _write(self, path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n", encoding="utf-8")

    @property
    def quota(self):
        return cpu_allowance(self.proc, self.cgroups).quota


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


# -- how many threads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("affinity", "quota", "usable"),
    [
        (8, None, 8),
        (8, 2.0, 2),
        (8, 2.9, 2),
        (8, 1.999, 2),  # 1999 us of 1 ms, the coarsest that two CPUs can be written
        (8, 1.99, 1),
        (8, 0.5, 1),
        (8, 0.001, 1),
        (1, 6.0, 1),
        (2, 64.0, 2),
    ],
)
def test_threads_that_run_at_once(affinity, quota, usable):
    """The smaller of affinity and quota, a fraction of a CPU rounded down, and never none."""
    assert CpuAllowance(16, affinity, quota).usable == usable


@given(st.integers(1, 512), st.none() | st.floats(1e-3, 1e4), st.floats(1e-3, 1e4))
def test_a_tighter_limit_never_gives_more_threads(affinity, quota, other):
    """At least one thread, never more than CPUs to run them, nor more under a further limit."""
    usable = CpuAllowance(512, affinity, quota).usable
    tighter = CpuAllowance(512, affinity, min(quota or other, other)).usable
    assert 1 <= tighter <= usable <= affinity


def test_this_process_pinned_to_one_cpu():
    """Affinity is the process's own: pinned to one CPU, it may use one."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        allowance = cpu_allowance()
        assert (allowance.affinity, allowance.usable, usable_cpus()) == (1, 1, 1)
        assert allowance.host == max(os.cpu_count(), 1)
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_system_without_affinity(monkeypatch, tree):
    """Where the system knows no affinity, every CPU may be used."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cpu_allowance(tree.proc, tree.cgroups) == CpuAllowance(6, 6, None)


# -- cgroups, version 2 ----------------------------------------------------------------------------------------------


def test_the_own_group(tree):
    """The limit of the group that /proc/self/cgroup names, below the mount, as under systemd."""
    tree.member(V2.format("/user.slice/x.scope")).v2("user.slice/x.scope", "150000 100000")
    assert tree.quota == 1.5


def test_a_group_around_the_own_one(tree):
    """The smallest limit on the way up counts: that of a slice or pod binds what is in it."""
    tree.member(V2.format("/pod/container/inner"))
    tree.v2("pod/container/inner", "max 100000").v2("pod/container", "400000 100000").v2("pod", "50000 100000")
    assert tree.quota == 0.5


def test_a_group_beside_the_own_one(tree):
    """Limits of groups that the process is not in are not its own."""
    tree.member(V2.format("/mine")).v2("mine", "300000 100000").v2("other", "10000 100000").v2("mine/inner", "1 100000")
    assert tree.quota == 3.0


def test_a_container_with_its_own_view(tree):
    """In a container the group is `/` and its limit lies in the mount itself (`docker run --cpus 2`)."""
    assert tree.member(V2.format("/")).v2(".", "200000 100000").quota == 2.0


@pytest.mark.parametrize("path", ["/docker/0a1b", "/../other", "/../../kubepods/pod1", "", "/a/b/../../.."])
def test_a_path_that_is_not_below_the_mount(tree, path):
    """A path of the host's, or out of the container's view, leaves what is visible: the mount."""
    tree.cgroups.parent.joinpath("cpu.max").write_text("1000 100000", encoding="utf-8")  # not to be reached by `..`
    assert tree.member(V2.format(path)).v2(".", "200000 100000").quota == 2.0


def test_a_group_inside_a_container_that_sees_the_host_path(tree):
    """Where only the last parts of the path are below the mount, the group is found by them, and those around it."""
    tree.member(V2.format("/docker/0a1b/worker")).v2("worker", "50000 100000").v2(".", "200000 100000")
    assert tree.quota == 0.5


def test_a_hybrid_system(tree):
    """A unified hierarchy beside version 1 is mounted in `unified`."""
    tree.member("4:memory:/m\n0::/x\n").v2("unified/x", "70000 100000")
    assert tree.quota == 0.7


# -- cgroups, version 1 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu", "cpuacct,cpu"])
@pytest.mark.parametrize("controllers", ["cpu,cpuacct", "cpu", "cpuset,cpu,cpuacct"])
def test_version_1(tree, mount, controllers):
    """The group of the `cpu` controller, whichever share its hierarchy, and wherever a distribution mounts it."""
    tree.member(f"2:cpuacct:/else\n4:{controllers}:/docker/x\n1:name=systemd:/else\n")
    tree.v1("docker/x", "25000", "50000", mount=mount).v1("else", "1", mount=mount)
    assert tree.quota == 0.5


def test_version_1_where_its_controllers_are_mounted_together(tree):
    """A hierarchy is mounted under the names of all its controllers, as /proc/self/cgroup has them."""
    tree.member("4:cpuset,cpu,cpuacct:/x\n").v1("x", "150000", mount="cpuset,cpu,cpuacct")
    assert tree.quota == 1.5


def test_version_1_around_the_own_group(tree):
    """-1 is no limit, and the smallest limit on the way up counts."""
    tree.member(V1.format("/pod/x")).v1("pod/x", "-1").v1("pod", "150000").v1(".", "-1")
    assert tree.quota == 1.5


def test_version_1_in_a_container(tree):
    """The host's path, of which the container sees the end only, leaves the mount."""
    assert tree.member(V1.format("/docker/0a1b")).v1(".", "200000").quota == 2.0


def test_a_controller_that_is_not_in_use(tree):
    """Files of version 1 do not count where the process is in no group of its `cpu` controller."""
    assert tree.member("3:cpuset:/x\n0::/\n").v1("x", "1000").v1(".", "1000").quota is None


# -- no quota --------------------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    """Without /proc and cgroups there is no quota."""
    assert cpu_allowance(tmp_path / "proc", tmp_path / "cgroup").quota is None


@pytest.mark.parametrize(
    "content",
    ["max 100000", "", "max", "100000", "-1 100000", "0 100000", "100000 0", "100000 -5", "1e5 100000", "٣ ٣", "1٣ 10", "1_0 10",
     "nan nan", "inf 1", "\0 \0", "9" * 5000 + " 1", "quota period"],
)  # fmt: skip
def test_files_that_hold_no_quota(tree, content):
    """`max`, nothing, and whatever no kernel wrote are no quota, in either version, and no error."""
    tree.member(V2.format("/x") + V1.format("/x")).v2("x", content)
    quota, _, period = content.partition(" ")
    assert tree.v1("x", quota, period).quota is None


def test_a_quota_that_cannot_be_read(tree):
    """A folder in the place of a file, and bytes that are no text, are no quota."""
    tree.member(V2.format("/x/y"))
    (tree.cgroups / "x" / "y" / "cpu.max").mkdir(parents=True)
    (tree.cgroups / "x" / "cpu.max").write_bytes(b"\xff\xfe 100000")
    assert tree.quota is None


def test_no_quota_hides_none(tree):
    """Garbage in one group does not hide the limit of the next."""
    tree.member(V2.format("/x/y")).v2("x/y", "garbage").v2("x", "50000 100000")
    assert tree.quota == 0.5


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_membership(tmp_path_factory, text):
    """Whatever /proc/self/cgroup holds, it ends with a number of threads, and the mount counts where the path is lost."""
    tree = Tree(tmp_path_factory.mktemp("any")).member(text).v2(".", "200000 100000")
    assert tree.quota == 2.0


def test_a_path_too_long_for_a_file_system(tree):
    """A group whose name no file system takes leaves the mount."""
    assert tree.member(V2.format("/" + "x" * 5000)).v2(".", "200000 100000").quota == 2.0


# -- how fast --------------------------------------------------------------------------------------------------------


def scaled(folder, number, khz, governor="performance"):
    place = folder / f"cpu{number}" / "cpufreq"
    place.mkdir(parents=True)
    (place / "scaling_cur_freq").write_text(f"{khz}\n", encoding="ascii")
    (place / "scaling_governor").write_text(f"{governor}\n", encoding="ascii")


def test_frequency_of_the_usable_cpus(tmp_path):
    """The slowest and the fastest of those asked for; the others are not looked at."""
    for number, khz in enumerate((800_000, 2_400_000, 3_100_500, 5_000_000)):
        scaled(tmp_path, number, khz, "powersave")
    found = cpu_frequency(tmp_path, tmp_path, numbers=[0, 1, 2])
    assert found == CpuFrequency("powersave", 800.0, 3100.5)
    assert str(found) == "800 to 3100 MHz (powersave)"


def test_governors_that_differ(tmp_path):
    """Each governor is named once; a CPU that has none, not at all."""
    for number, governor in enumerate(("powersave", "performance", "powersave")):
        scaled(tmp_path, number, 1_000_000, governor)
    scaled(tmp_path, 3, 1_000_000, "")
    assert str(cpu_frequency(tmp_path, tmp_path, numbers=range(4))) == "1000 MHz (performance, powersave)"


def test_frequency_from_cpuinfo(tmp_path):
    """Without frequency scaling it is what /proc/cpuinfo says of the CPUs asked for."""
    entries = [(0, "1200.000"), (1, "2596.142"), (2, "3000.5"), (3, "unknown")]
    text = "\n".join(f"processor\t: {number}\nmodel name\t: X\ncpu MHz\t\t: {mhz}\n" for number, mhz in entries)
    (tmp_path / "cpuinfo").write_text(text, encoding="ascii")
    assert cpu_frequency(tmp_path, tmp_path, numbers=[1, 2, 3]) == CpuFrequency("", 2596.142, 3000.5)
    assert cpu_frequency(tmp_path, tmp_path, numbers=[3]) is None


def test_a_system_that_does_not_say(tmp_path):
    """No files, or files that hold no frequency: unknown, not 0."""
    assert cpu_frequency(tmp_path, tmp_path) is None
    scaled(tmp_path, 0, "<unknown>")
    assert cpu_frequency(tmp_path, tmp_path, numbers=[0]) is None


# -- the facts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quota", "text"), [(None, "none"), (0.5, "0.5"), (2.0, "2")])
def test_facts(monkeypatch, quota, text):
    """The host's CPUs, the quota and what is left to use are told apart."""
    monkeypatch.setattr(machine, "cpu_allowance", lambda: CpuAllowance(64, 8, quota))
    facts = machine_facts()
    assert (facts["cpus"], facts["cpu_quota"]) == ("64", text)
    assert facts["usable_cpus"] == str(CpuAllowance(64, 8, quota).usable)
    assert all(facts.values())
