"""Machines that were written down, each with a pitfall, replayed without touching this one."""

from pathlib import Path

import pytest
import yaml

from edgetune.device import list_devices, read_device, read_machine
from edgetune.device.apple import recommended_working_set
from edgetune.device.cgroup import cores_allowed
from edgetune.device.cpu import host_memory
from edgetune.device.recorded import recorded_system
from edgetune.device.system import System
from edgetune.errors import UsageError

RECORDINGS = Path(__file__).parent / "fixtures" / "devices"
GIB = 2**30


def machine(name: str) -> System:
    text = (RECORDINGS / f"{name}.yaml").read_text(encoding="utf-8")
    return recorded_system(yaml.safe_load(text))


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_machine_is_read_and_its_numbers_are_consistent(path: Path) -> None:
    found = read_machine(machine(path.stem))
    assert found.devices[-1].kind == "cpu"
    for device in found.devices:
        assert 0 <= device.usable_bytes <= device.free_bytes <= device.total_bytes
        assert device.here
        assert device.name
        assert device.because
        assert (device.link_bandwidth is None) == device.unified


def test_a_container_limits_and_its_page_cache_is_free() -> None:
    system = machine("docker-v2-4gb")
    memory = host_memory(system)
    assert memory.total == 4_000_000_000
    assert memory.free == 4_000_000_000 - (3_500_000_000 - 2_000_000_000)
    assert "a container or service limits this process to 4.0 GB, 2.5 GB of it free" in memory.notes


def test_a_quota_of_two_cores_counts_as_two_cores() -> None:
    system = machine("docker-v2-4gb")
    assert cores_allowed(system) == 2
    assert read_device("cpu", system).rate_32bit == 2 * system.clock * 32


def test_the_tightest_ancestor_decides_and_throttling_counts_as_a_limit() -> None:
    memory = host_memory(machine("ancestor-v2"))
    assert (memory.total, memory.free) == (10_000_000_000, 7_000_000_000)


def test_a_huge_number_is_no_limit() -> None:
    memory = host_memory(machine("unlimited-v1"))
    assert (memory.total, memory.free, memory.notes) == (16_000_000_000, 12_000_000_000, ())


def test_version_1_of_a_container_is_read_at_the_mount_point() -> None:
    system = machine("docker-v1-2gb")
    assert host_memory(system).free == 2_147_483_648 - (900_000_000 - 400_000_000)
    assert cores_allowed(system) is None


def test_ulimit_is_a_limit() -> None:
    memory = host_memory(machine("ulimit"))
    assert memory.free == 6_144_000_000 - 1_200_000 * 1024
    assert memory.notes == ("RLIMIT_AS limits this process to 6.1 GB (`ulimit`)",)


def test_of_two_cards_the_one_with_room_is_taken() -> None:
    system = machine("two-cards")
    full, empty, _ = list_devices(system)
    assert full.notes == ("the driver and other processes hold 24.5 GB of the card",)
    assert read_device("auto", system) == read_device("cuda", system) == empty
    assert read_device("cuda:0", system) == full
    assert empty.link_bandwidth == pytest.approx(8 * 0.985e9 * 0.8)
    assert empty.rate_16bit == pytest.approx(25.5e12, rel=0.01)
    with pytest.raises(UsageError, match="the last card is cuda:1"):
        read_device("cuda:2", system)


def test_windows_spills_and_says_so() -> None:
    card = read_device("auto", machine("wsl-laptop"))
    assert card.name == "NVIDIA GeForce RTX 4060 Laptop GPU"
    assert any("spills to host memory" in note for note in card.notes)
    assert card.memory_bandwidth == 256e9


def test_a_jetson_shares_the_memory_of_its_host() -> None:
    system = machine("jetson-orin-nano")
    board = read_device("auto", system)
    assert (board.kind, board.unified, board.link_bandwidth) == ("cuda", True, None)
    assert board.free_bytes == system.available_bytes
    assert board.notes == ("integrated: shares the host's memory",)
    assert board.memory_bandwidth == 68e9


def test_a_card_without_a_profile_has_no_rates() -> None:
    text = (RECORDINGS / "unified-desktop.yaml").read_text(encoding="utf-8")
    unknown = recorded_system(yaml.safe_load(text.replace("GB10", "GB99")))
    card = read_device("cuda", unknown)
    assert card.unified
    assert (card.rate_16bit, card.rate_32bit, card.memory_bandwidth) == (0, 0, 0)
    assert "no profile has this name" in card.because


def test_a_small_mac_has_what_its_programs_leave() -> None:
    mac = read_device("auto", machine("mac-8gb"))
    assert (mac.name, mac.backend, mac.free_bytes) == ("Apple M2", "mlx", 3_000_000_000)
    assert mac.usable_bytes < 3_000_000_000 - 0.04 * 8 * GIB
    assert mac.notes == ("other programs leave 3.0 GB free: closing some gives a run more",)
    assert mac.rate_16bit == 3.6e12


def test_a_large_mac_has_what_macos_recommends() -> None:
    mac = read_device("mlx", machine("mac-64gb"))
    assert mac.usable_bytes == 48 * GIB
    assert mac.memory_bandwidth == 546e9


@pytest.mark.parametrize(
    ("gib", "recommended_mib"),
    [(8, 5461), (16, 10922), (18, 12288), (32, 21845), (36, 27648), (64, 49152), (96, 73728)],
)
def test_recommended_working_sets_are_those_macos_was_seen_to_report(
    gib: int, recommended_mib: int
) -> None:
    assert recommended_working_set(gib * GIB) // 2**20 == recommended_mib


def test_a_wired_limit_is_obeyed() -> None:
    facts = yaml.safe_load((RECORDINGS / "mac-64gb.yaml").read_text(encoding="utf-8"))
    facts["commands"]["/usr/sbin/sysctl -n iogpu.wired_limit_mb"] = "20480\n"
    mac = read_device("mlx", recorded_system(facts))
    assert mac.usable_bytes == 20 * GIB
    assert "iogpu.wired_limit_mb" in mac.because


def test_absent_devices_have_reasons() -> None:
    assert read_machine(machine("mac-rosetta")).absent == (
        "cuda: no NVIDIA driver was found",
        "mlx: this Python runs under Rosetta; install one for arm64",
    )
    with pytest.raises(UsageError, match="no NVIDIA driver was found"):
        read_device("cuda", machine("ulimit"))
    with pytest.raises(UsageError, match="not a Mac with Apple silicon"):
        read_device("mlx", machine("ulimit"))


def test_mlx_is_offered_on_linux_where_it_is_installed() -> None:
    facts = {"total_bytes": 8 * GIB, "available_bytes": 6 * GIB, "modules": {"mlx": "/site/mlx"}}
    device = read_device("mlx", recorded_system(facts))
    assert (device.backend, device.kind) == ("mlx", "mlx")
    assert any("too slow for work" in note for note in device.notes)
