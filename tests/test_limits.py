"""How many processors and how much memory a process may use, in fake containers with both versions of cgroups."""

import pytest
from fastopt.kernels import limits, pool

import fastopt

NONE = 2**63 - 4096  # what version 1 writes where there is no limit of memory


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A function that sets a process's cgroups, the mounts, and the files in them."""

    def make(own, mounts, files):
        process = tmp_path / "process"
        process.mkdir()
        (process / "cgroup").write_text(own)
        lines = [
            f"{number} 20 0:{number} {root} {tmp_path}/{point} rw,relatime shared:1 - {kind}\n"
            for number, (root, point, kind) in enumerate(mounts, start=30)
        ]
        (process / "mountinfo").write_text("21 1 8:1 / / rw - ext4 /dev/root rw\n" + "".join(lines))
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.setattr(limits, "PROCESS", process)

    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(limits, "physical_memory", lambda: 10**12)
    return make


VERSION_2 = ("/", "cgroup", "cgroup2 cgroup2 rw")


def of_version_1(root="/"):
    """The two mounts that matter there, one with another controller beside."""
    return [(root, "cpu", "cgroup cgroup rw,cpu,cpuacct"), (root, "memory", "cgroup cgroup rw,memory")]


@pytest.mark.parametrize(
    ("quota", "processors"),
    [("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("1600000 100000", 8)],
)
def test_version_2(container, quota, processors):
    """Whole processors, at least one, and no more than there are."""
    container("0::/\n", [VERSION_2], {"cgroup/cpu.max": f"{quota}\n", "cgroup/memory.max": "2000000000\n"})
    assert limits.processors() == processors
    assert limits.memory() == 2 * 10**9


def test_the_lowest_limit_up_to_the_root_holds(container):
    files = {
        "cgroup/pod/cpu.max": "300000 100000",
        "cgroup/pod/memory.max": "max",
        "cgroup/pod/inner/cpu.max": "max 100000",
        "cgroup/pod/inner/memory.max": "4000000000",
        "cgroup/other/cpu.max": "100000 100000",
        "cgroup/pod/inner/below/memory.max": "1",
    }
    container("0::/pod/inner\n", [VERSION_2], files)
    assert limits.cpu_quota() == 3
    assert limits.processors() == 3
    assert limits.memory_limit() == 4 * 10**9


def test_version_1(container):
    own = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"
    files = {
        "cpu/docker/cpu.cfs_quota_us": "-1\n",
        "cpu/docker/cpu.cfs_period_us": "100000\n",
        "cpu/docker/abc/cpu.cfs_quota_us": "150000\n",
        "cpu/docker/abc/cpu.cfs_period_us": "50000\n",
        "memory/memory.limit_in_bytes": f"{NONE}\n",
        "memory/docker/memory.limit_in_bytes": "6000000000\n",
        "memory/docker/abc/memory.limit_in_bytes": "8000000000\n",
    }
    container(own, of_version_1(), files)
    assert limits.processors() == 3
    assert limits.memory() == 6 * 10**9


@pytest.mark.parametrize("root", ["/docker/abc", "/"])
def test_a_container_that_sees_its_own_group_alone(container, root):
    """Its folder is the mount's root, whether or not the path within the host's tree is there."""
    own = "4:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n"
    files = {
        "cpu/cpu.cfs_quota_us": "100000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "3000000000",
    }
    container(own, of_version_1(root), files)
    assert (limits.processors(), limits.memory()) == (1, 3 * 10**9)


def test_no_limits(container, monkeypatch, tmp_path):
    """Version 1 without one, files of unknown content, no cgroups at all."""
    files = {
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": f"{NONE}",
        "cgroup/cpu.max": "many",
        "cgroup/memory.max": "",
    }
    container("4:cpu,cpuacct:/\n5:memory:/\n0::/\n", [*of_version_1(), VERSION_2], files)
    assert (limits.cpu_quota(), limits.memory_limit()) == (None, None)
    assert (limits.processors(), limits.memory()) == (8, 10**12)
    monkeypatch.setattr(limits, "PROCESS", tmp_path / "nowhere")
    assert (limits.cpu_quota(), limits.memory_limit()) == (None, None)


def test_a_mount_with_a_blank_in_its_name(container):
    container("0::/\n", [("/", r"my\040groups", "cgroup2 none rw")], {"my groups/cpu.max": "100000 100000"})
    assert limits.processors() == 1


def test_the_pool_has_as_many_threads_as_the_quota_grants(container, monkeypatch):
    monkeypatch.setattr(pool, "_num_threads", None)
    monkeypatch.delenv("FASTOPT_NUM_THREADS", raising=False)
    container("0::/\n", [VERSION_2], {"cgroup/cpu.max": "300000 100000"})
    assert fastopt.get_num_threads() == 3
