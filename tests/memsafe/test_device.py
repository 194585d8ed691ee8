"""What the machine has: sizes, caps, control groups, NVML, other processes."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentsync_memsafe.memsafe import probe
from latentsync_memsafe.memsafe.device import memory as memory_module
from latentsync_memsafe.memsafe.device import probe as device_module
from latentsync_memsafe.memsafe.device.capability import bf16_in_hardware, has_kernels
from latentsync_memsafe.memsafe.device.cgroup import (
    available_in_group,
    cpu_limit,
    memory_groups,
    memory_limit,
)
from latentsync_memsafe.memsafe.device.memory import (
    allocated_memory,
    available_memory,
    empty_cache,
    free_disk,
    reserved_memory,
    used_by_all,
)
from latentsync_memsafe.memsafe.device.probe import nvml_memory

from support.cards import GIB, card


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch.cuda with two cards of 8 GiB, of which the second is current; attributes can be set."""
    state = SimpleNamespace(
        cards=[
            SimpleNamespace(name="first", major=7, minor=5, total_memory=8 * GIB, uuid="1111"),
            SimpleNamespace(name="second", major=9, minor=0, total_memory=8 * GIB, uuid="2222"),
        ],
        free=[3 * GIB, 6 * GIB],
        allocated=0,
        reserved=0,
    )
    number = lambda device: device if isinstance(device, int) else device.index  # noqa: E731

    def mem_get_info(device) -> tuple[int, int]:
        if state.free is None:
            raise RuntimeError("CUDA error: operation not supported")
        return state.free[number(device)], 8 * GIB

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 1,
        "init": lambda: None,
        "mem_get_info": mem_get_info,
        "memory_allocated": lambda device: state.allocated,
        "memory_reserved": lambda device: state.reserved,
        "get_device_properties": lambda device: state.cards[number(device)],
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    return state


def fake_nvml(**memory: tuple[int, int]) -> SimpleNamespace:
    """A pynvml that knows cards by UUID as (total, free)."""

    class NVMLError(Exception):
        pass

    def handle(uuid: str) -> tuple[int, int]:
        if uuid not in memory:
            raise NVMLError("Not Found")
        return memory[uuid]

    calls: list[str] = []
    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: calls.append("init"),
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetMemoryInfo=lambda pair: SimpleNamespace(total=pair[0], free=pair[1]),
        calls=calls,
    )


def test_a_gpu_is_known_by_its_number(two_cards: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe("cuda").device == torch.device("cuda", 1) and probe("cuda").name == "second"
    assert probe("cuda").capability == (9, 0) and probe("cuda").bf16
    assert not probe("cuda:0").bf16 and "cuda:0" in probe("cuda:0").describe()
    with pytest.raises(ValueError, match=r"'cuda:2', but torch sees 2"):
        probe("cuda:2")


@pytest.mark.parametrize(
    ("capability", "architecture", "bf16"),
    [
        ((7, 5), "", False),
        ((8, 0), "", True),
        ((12, 0), "", True),
        (None, "gfx906:sramecc+:xnack-", False),
        (None, "gfx90a:sramecc+:xnack-", True),
        (None, "gfx1100", True),
    ],
)
def test_bfloat16_by_generation(capability: tuple[int, int] | None, architecture: str, bf16: bool) -> None:
    assert bf16_in_hardware(capability, architecture) == bf16


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((6, 1), "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120", False),  # Pascal, and Volta, with CUDA 13's wheels
        ((7, 0), "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120", False),
        ((6, 1), "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90", True),  # same major version, lower minor
        ((8, 9), "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90", True),
        ((8, 0), "sm_86 sm_90", False),  # same major version, higher minor
        ((12, 0), "sm_50 sm_80 sm_86 sm_90", False),  # newer than the wheel
        ((12, 0), "sm_50 sm_80 sm_86 sm_90 compute_90", True),  # which the driver can compile for it
        ((9, 0), "sm_90a", True),
        ((10, 3), "sm_100f sm_120a", True),
        ((6, 1), "", True),
    ],
)
def test_a_gpu_runs_what_was_built_for_it_or_can_be_compiled(
    capability: tuple[int, int], built: str, runs: bool
) -> None:
    assert has_kernels(capability, built.split()) == runs


def test_a_gpu_without_kernels_is_refused_in_a_sentence(
    two_cards: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    assert probe("cuda").name == "second"
    with pytest.raises(ValueError) as error:
        probe("cuda:0")
    assert str(error.value) == (
        "first (cuda:0) has compute capability 7.5, but this torch has kernels for sm_80, sm_90 only; install a torch "
        "built for this GPU, or use cpu."
    )
    monkeypatch.setattr(torch.version, "hip", "6.2")  # whose list names other architectures
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["gfx90a", "sm_80"])
    assert probe("cuda:0").capability is None


@pytest.mark.parametrize(
    ("name", "works"),
    [
        *((f"NVIDIA GeForce GTX {name}", False) for name in ("1660 SUPER", "1650 Ti", "1630")),
        *(
            (f"NVIDIA {name}", False)
            for name in ("GeForce MX450", "T1000 8GB", "T600 Laptop GPU", "CMP 30HX")
        ),
        ("Quadro T2000", False),
        *((f"NVIDIA {name}", True) for name in ("GeForce RTX 2060", "TITAN RTX", "Quadro RTX 5000")),
        ("Tesla T4", True),
    ],
)
def test_turing_cards_without_tensor_cores_have_no_float16(
    two_cards: SimpleNamespace, name: str, works: bool
) -> None:
    two_cards.cards[0].name = name
    assert probe("cuda:0").fp16 is works
    assert probe("cuda:1").fp16


def test_an_amd_card_has_no_compute_capability_and_nvml_is_not_asked(
    two_cards: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**{"GPU-2222": (8 * GIB, GIB)}))
    two_cards.cards[1].gcnArchName = "gfx942:sramecc+"
    info = probe("cuda:1")
    assert info.capability is None and info.bf16
    assert info.nvml is None and info.free_memory == 6 * GIB


def test_what_torch_keeps_cached_is_free_and_what_it_uses_is_usable(two_cards: SimpleNamespace) -> None:
    two_cards.allocated, two_cards.reserved = GIB, 2 * GIB
    info = probe("cuda:0")
    assert info.free_memory == 3 * GIB + GIB
    assert info.usable_memory == 5 * GIB
    assert available_memory(info) == 4 * GIB
    two_cards.free[0] = GIB  # another program has come
    assert available_memory(info) == 2 * GIB


def test_nvml_is_asked_by_uuid_and_the_lower_answer_counts(
    two_cards: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = fake_nvml(**{"GPU-1111": (8 * GIB, 2 * GIB), "GPU-2222": (8 * GIB, 7 * GIB)})
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert probe("cuda:0").nvml == (8 * GIB, 2 * GIB) and probe("cuda:0").free_memory == 2 * GIB
    assert probe("cuda:1").nvml == (8 * GIB, 7 * GIB) and probe("cuda:1").free_memory == 6 * GIB
    assert nvml.calls == ["init", "shutdown"] * (len(nvml.calls) // 2)
    assert nvml_memory("3333") is None and nvml.calls[-1] == "shutdown"
    assert nvml_memory(None) is None
    assert used_by_all(torch.device("cuda", 0)) == 6 * GIB and used_by_all(torch.device("cuda", 1)) == GIB
    assert used_by_all(torch.device("cpu")) is None


def test_nvml_that_speaks_of_another_size_is_not_believed(
    two_cards: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice of a large card: NVML reports the whole."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**{"GPU-1111": (80 * GIB, 2 * GIB)}))
    info = probe("cuda:0")
    assert info.nvml is None and info.total_memory == 8 * GIB and info.free_memory == 3 * GIB
    assert used_by_all(info.device) is None
    two_cards.free = None
    assert probe("cuda:0").free_memory == 8 * GIB


@pytest.mark.parametrize("module", [None, SimpleNamespace()])
def test_without_nvml_torch_is_enough(
    two_cards: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert probe("cuda:0").nvml is None and probe("cuda:0").free_memory == 3 * GIB


def test_a_driver_that_does_not_tell_torch(
    two_cards: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_cards.free, two_cards.reserved, two_cards.allocated = None, 2 * GIB, GIB
    info = probe("cuda:0")
    assert info.total_memory == 8 * GIB and info.free_memory == 7 * GIB
    assert available_memory(info) == 7 * GIB
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**{"GPU-1111": (8 * GIB, 2 * GIB)}))
    assert probe("cuda:0").free_memory == 3 * GIB  # NVML's two, and the cached one


def test_a_limit_is_taken_for_the_cards_size(two_cards: SimpleNamespace) -> None:
    limited = card(80).limited_to(8)
    assert limited.total_memory == limited.free_memory == 8 * GIB
    assert card(8).limited_to(80).total_memory == 8 * GIB
    assert card(80).limited_to(8).limited_to(12).total_memory == 8 * GIB
    two_cards.allocated = two_cards.reserved = GIB
    info = probe("cuda:1").limited_to(4)
    assert info.free_memory == 3 * GIB and info.usable_memory == 4 * GIB
    two_cards.allocated = 3 * GIB
    assert available_memory(info) == GIB
    two_cards.allocated = 5 * GIB
    assert available_memory(info) == 0
    for size in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="vram_limit_gb"):
            info.limited_to(size)


@given(
    total=st.integers(1, 100),
    free=st.integers(0, 100),
    allocated=st.integers(0, 100),
    limit=st.floats(0.1, 200, allow_nan=False),
)
def test_a_limited_card_is_never_larger_nor_freer(
    total: int, free: int, allocated: int, limit: float
) -> None:
    info = replace(card(total, free=min(free, total)), allocated=allocated * GIB)
    limited = info.limited_to(limit)
    assert limited.total_memory == min(info.total_memory, int(limit * GIB))
    assert 0 <= limited.free_memory <= info.free_memory
    assert limited.free_memory == info.free_memory or (
        limited.free_memory + info.allocated >= limited.total_memory
    )
    assert limited.usable_memory <= limited.total_memory


def test_unknown_devices_are_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            probe("cuda")
    with pytest.raises(ValueError, match="expected cuda, mps or cpu"):
        probe("meta")
    with pytest.raises(ValueError, match="'gpu'; expected cuda"):
        probe("gpu")


def test_apples_memory_is_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 2 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=5 * GIB))
    monkeypatch.setattr(device_module, "available_in_group", lambda: None)
    monkeypatch.setattr(memory_module, "available_ram", lambda: 5 * GIB)
    info = probe("mps")
    assert (info.kind, info.total_memory, info.free_memory, info.allocated) == (
        "mps",
        12 * GIB,
        5 * GIB,
        2 * GIB,
    )
    assert available_memory(info) == 5 * GIB
    monkeypatch.setattr(memory_module, "available_ram", lambda: 50 * GIB)
    assert available_memory(info) == 10 * GIB
    assert available_memory(info.limited_to(6)) == 4 * GIB


def test_the_cpus_memory_is_what_its_control_group_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=64 * GIB, available=40 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    for module in (device_module, memory_module):
        monkeypatch.setattr(module, "available_in_group", lambda: 3 * GIB)
    monkeypatch.setattr(device_module, "memory_limit", lambda: 8 * GIB)
    monkeypatch.setattr(device_module, "cpu_limit", lambda: 1.5)
    info = probe("cpu")
    assert info.total_memory == info.ram_total == 8 * GIB
    assert info.free_memory == info.ram_available == available_memory(info) == 3 * GIB
    assert info.cpu_count <= 2
    assert available_memory(info.limited_to(1)) == GIB
    for module in (device_module, memory_module):
        monkeypatch.setattr(module, "available_in_group", lambda: None)
    monkeypatch.setattr(device_module, "memory_limit", lambda: None)
    assert probe("cpu").ram_total == 64 * GIB and available_memory(info) == 40 * GIB


def test_free_disk_is_that_of_the_folder_to_be(tmp_path: Path) -> None:
    there = free_disk(tmp_path)
    assert there is not None and there > 0
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(there, rel=0.1)
    assert not (tmp_path / "not").exists()


def test_a_cpu_counts_nothing_and_keeps_nothing() -> None:
    cpu = torch.device("cpu")
    assert allocated_memory(cpu) is None and reserved_memory(cpu) is None
    empty_cache(cpu)


def group(root: Path, path: str, **files: object) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def limits(root: Path, membership: Path) -> tuple[int | None, int | None, float | None]:
    memory_groups.cache_clear()
    place = (root, membership)
    return memory_limit(*place), available_in_group(*place), cpu_limit(*place)


def test_version_2_takes_the_tightest_limit_on_the_way_up(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root, "user/job", memory__max="max", memory__high=6 * GIB, memory__current=5 * GIB)
    group(root, "user/job", memory__stat=f"anon 1\ninactive_file {2 * GIB}\nfile 3", cpu__max="150000 100000")
    group(root, "user", memory__max=8 * GIB, memory__current=int(7.5 * GIB), cpu__max="max 100000")
    member = tmp_path / "self"
    member.write_text("0::/user/job\n")
    # The upper group may hold more, but others in it have taken nearly all.
    assert limits(root, member) == (6 * GIB, GIB // 2, 1.5)


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path, ".", memory__max=4 * GIB, memory__current=GIB)
    member = tmp_path / "self"
    member.write_text("0::/docker/8d3f/../outside\n")  # a path of the host, not there inside
    assert limits(tmp_path, member) == (4 * GIB, 3 * GIB, None)


def test_version_1_has_a_folder_for_each_controller(tmp_path: Path) -> None:
    group(tmp_path, "memory/job", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=GIB)
    group(tmp_path, "memory/job", memory__stat=f"inactive_file 5\ntotal_inactive_file {GIB // 2}")
    group(tmp_path, "memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=9 * GIB)
    group(tmp_path, "cpu,cpuacct/job", cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
    group(tmp_path, "cpu,cpuacct", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    member = tmp_path / "self"
    member.write_text("12:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/job\n")
    assert limits(tmp_path, member) == (2 * GIB, GIB + GIB // 2, 0.5)


@pytest.mark.parametrize("content", ["", "nonsense", "0::", ":::::", "x:memory:/a\n0:y"])
def test_what_cannot_be_understood_limits_nothing(tmp_path: Path, content: str) -> None:
    member = tmp_path / "self"
    member.write_text(content)
    assert limits(tmp_path, member) == limits(tmp_path, tmp_path / "absent") == (None, None, None)
