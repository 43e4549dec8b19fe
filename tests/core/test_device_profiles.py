"""Every device profile is whole and sane, and devices here find their own."""

import pytest

from edgetune.device import read_device
from edgetune.device.apple import recommended_working_set
from edgetune.device.capability import capability_of
from edgetune.device.profiles import figures
from edgetune.errors import UsageError
from edgetune.profile import names, read_yaml

NAMES = names("devices")
GIB = 2**30
REQUIRED = {
    "name": str,
    "backend": str,
    "kind": str,
    "total_bytes": int,
    "usable_share": float,
    "memory_bandwidth": float,
    "link_bandwidth": (float, type(None)),
    "disk_bandwidth": float,
    "rate_16bit": float,
    "rate_32bit": float,
    "unified": bool,
    "source": str,
}


def test_there_are_profiles_for_the_machines_people_own() -> None:
    assert len(NAMES) >= 32


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_holds_each_field_and_no_other(name: str) -> None:
    content = read_yaml("devices", name)
    own = {"cpu": {"multiplies_16bit"}, "cuda": {"compute_capability"}}.get(content["kind"], set())
    assert set(content) - {"notes"} == set(REQUIRED) | own
    assert isinstance(content.get("multiplies_16bit", True), bool)
    for field, kind in REQUIRED.items():
        assert isinstance(content[field], kind), field
    assert all(isinstance(note, str) for note in content.get("notes", []))


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_sane(name: str) -> None:
    device = read_device(name)
    assert not device.here
    assert device.backend == ("mlx" if device.kind == "mlx" else "torch")
    assert 4 * GIB <= device.total_bytes <= 128 * GIB
    assert 0.5 <= device.usable_bytes / device.total_bytes <= 1
    assert 30e9 <= device.memory_bandwidth <= 2e12
    assert 1e8 <= device.disk_bandwidth <= 1e10
    assert 1e11 <= device.rate_32bit <= device.rate_16bit <= 1e15
    boards = ("Jetson", "GB10")
    assert device.unified == (device.kind != "cuda" or any(x in device.name for x in boards))
    assert (device.link_bandwidth is None) == device.unified
    assert device.link_bandwidth is None or 1e10 <= device.link_bandwidth <= 6e10


def test_cards_without_bfloat16_compute_in_float16() -> None:
    turing = [name for name in NAMES if read_device(name).compute_capability == (7, 5)]
    assert {"t4", "rtx-2060", "rtx-2080-ti"} <= set(turing)
    for name in turing:
        device = read_device(name)
        assert capability_of(device).compute_dtypes == ("float16",)
        assert "no bfloat16" in " ".join(device.notes)
        assert device.rate_16bit > 3 * device.rate_32bit
    assert capability_of(read_device("rtx-3060")).compute_dtypes == ("bfloat16",)


def test_a_name_may_be_written_in_capitals() -> None:
    assert read_device("RTX-4060-Laptop") == read_device("rtx-4060-laptop")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("m")])
def test_a_mac_uses_no_more_than_macos_recommends(name: str) -> None:
    device = read_device(name)
    assert device.usable_bytes <= recommended_working_set(device.total_bytes)


@pytest.mark.parametrize(
    ("name", "total", "profile"),
    [
        ("NVIDIA GeForce RTX 4060 Laptop GPU", 8 * GIB, "rtx-4060-laptop"),
        ("NVIDIA GeForce RTX 4060 Ti", 16 * GIB, "rtx-4060-ti-16gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 8 * GIB, "rtx-4060-ti-8gb"),
        ("Tesla T4", 15 * GIB, "t4"),
        ("NVIDIA A100-PCIE-40GB", 40 * GIB, "a100-40gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 61 * GIB, "jetson-agx-orin-64gb"),
        ("NVIDIA GB10", 120 * GIB, "gb10-128gb"),
        ("Apple M3 Pro", 36 * GIB, "m3-pro-36gb"),
        ("Apple M5", 32 * GIB, "m5-32gb"),
        ("Apple M1", 8 * GIB, "m1-8gb"),
    ],
)
def test_a_device_here_finds_its_published_figures(name: str, total: int, profile: str) -> None:
    assert figures(name, total).because == f"published figures from the profile {profile}"


@pytest.mark.parametrize("name", ["NVIDIA A10G", "NVIDIA GeForce RTX 4060 Max", "Apple M9", ""])
def test_a_name_that_is_only_similar_finds_nothing(name: str) -> None:
    assert figures(name, 16 * GIB).rate_16bit == 0


@pytest.mark.parametrize("name", NAMES)
def test_each_profile_is_found_by_the_name_that_it_states(name: str) -> None:
    device = read_device(name)
    if device.kind != "cpu":
        assert figures(device.name, device.total_bytes).because.endswith(f" {name}")


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="rtx-4090"):
        read_device("rtx-4091")
