"""What NVIDIA's library and command say, and which cards a process may see."""

import ctypes
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.card import Card, link_bandwidth, visible
from edgetune.device.cuda import read_cuda
from edgetune.device.nvml import nvml_cards
from edgetune.device.recorded import recorded_system
from edgetune.device.smi import COMMAND, smi_cards
from edgetune.device.system import System

GIB = 2**30


def card(index: int, uuid: str, name: str = "NVIDIA GeForce RTX 3090") -> Card:
    return Card(
        index=index,
        uuid=uuid,
        name=name,
        total_bytes=24 * GIB,
        free_bytes=23 * GIB,
        link_generation=4,
        link_lanes=16,
    )


ZERO, ONE, PART = card(0, "GPU-aa01"), card(1, "GPU-bb02"), card(2, "MIG-cc03")
CARDS = (ZERO, ONE, PART)


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        (None, CARDS),
        ("", ()),
        ("-1", ()),
        ("1", (ONE,)),
        ("1,0", (ONE, ZERO)),
        (" 1 , 0", (ONE, ZERO)),
        ("0,7,1", (ZERO,)),
        ("0,0", ()),
        ("GPU-bb", (ONE,)),
        ("GPU-aa01,MIG-cc03", (ZERO, PART)),
        ("GPU-zz", ()),
        ("none", ()),
        ("²", ()),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(
    wanted: str | None, seen: tuple[Card, ...]
) -> None:
    environment = {} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted}
    assert visible(CARDS, environment) == seen


@given(st.text(alphabet="0123,-GPUMIabc ", max_size=20))
def test_whatever_is_asked_for_no_card_is_seen_twice(wanted: str) -> None:
    seen = visible(CARDS, {"CUDA_VISIBLE_DEVICES": wanted})
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(CARDS)


def test_an_unknown_link_has_no_bandwidth() -> None:
    assert link_bandwidth(0, 16) == link_bandwidth(4, 0) == 0
    assert 24e9 < link_bandwidth(4, 16) < 32e9


def smi_machine(rows: str, **environment: str) -> System:
    return recorded_system(
        {
            "total_bytes": 32 * GIB,
            "available_bytes": 30 * GIB,
            "environment": environment,
            "commands": {" ".join(COMMAND): rows},
        }
    )


def test_rows_of_the_command_become_cards() -> None:
    system = smi_machine(
        "0, GPU-aa01, Tesla T4, 15360, 14923, 3, 16\nwarning: not a row\n1, GPU-bb, Tesla T4, [GPU is lost], [GPU is lost], 3, 16\n"
    )
    (found,) = smi_cards(system)
    assert (found.name, found.total_bytes, found.link_lanes) == ("Tesla T4", 15360 * 2**20, 16)


def test_hidden_cards_are_reported() -> None:
    system = smi_machine("0, GPU-aa01, Tesla T4, 15360, 14923, 3, 16\n", CUDA_VISIBLE_DEVICES="")
    found = read_cuda(system)
    assert found.devices == ()
    assert found.absent == ("cuda: CUDA_VISIBLE_DEVICES hides 1 of 1 cards",)


def test_numbers_that_may_mean_another_card_are_pointed_out() -> None:
    rows = "0, GPU-aa, Tesla T4, 15360, 14923, 3, 16\n1, GPU-bb, NVIDIA L4, 23034, 22600, 4, 16\n"
    (ambiguous,) = read_cuda(smi_machine(rows, CUDA_VISIBLE_DEVICES="1")).devices
    assert any("CUDA_DEVICE_ORDER" in note for note in ambiguous.notes)
    settled = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    (certain,) = read_cuda(smi_machine(rows, **settled)).devices
    assert certain.name == "NVIDIA L4"
    assert not any("CUDA_DEVICE_ORDER" in note for note in certain.notes)


def put(reference, value: int) -> int:
    """Write through a ``ctypes.byref`` as the library does."""
    reference._obj.value = value
    return 0


def answering(init_code: int = 0) -> SimpleNamespace:
    """Return the library's functions as they answer for one whole and one divided card.

    It has no ``nvmlDeviceGetMaxPcieLinkWidth``, as the libraries of old drivers lack functions.
    """

    def memory(handle, memory) -> int:
        memory._obj.total = 24 * GIB if handle.value == 100 else 5 * GIB
        memory._obj.free = memory._obj.total - GIB
        return 0

    def uuid(handle, text, size) -> int:
        text.value = f"{'GPU' if handle.value < 200 else 'MIG'}-{handle.value}".encode()
        return 0

    def name(handle, text, size) -> int:
        text.value = b"NVIDIA GeForce RTX 4090"
        return 0

    driver = SimpleNamespace(
        nvmlInit_v2=lambda: init_code,
        nvmlDeviceGetCount_v2=lambda count: put(count, 2),
        nvmlDeviceGetHandleByIndex_v2=lambda index, handle: put(handle, 100 + index),
        nvmlDeviceGetMigMode=lambda handle, now, _next: put(now, int(handle.value == 101)),
        nvmlDeviceGetMaxMigDeviceCount=lambda _card, count: put(count, 7),
        nvmlDeviceGetMigDeviceHandleByIndex=lambda _card, index, part: (
            put(part, 200 + index) if index < 2 else 6
        ),
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetUUID=uuid,
        nvmlDeviceGetName=name,
        nvmlDeviceGetMaxPcieLinkGeneration=lambda _card, number: put(number, 4),
        nvmlDeviceGetMaxClockInfo=lambda _card, _kind, clock: put(clock, 10501),
        nvmlDeviceGetMemoryBusWidth=lambda _card, bits: put(bits, 384),
    )
    driver.shutdowns = []
    driver.nvmlShutdown = lambda: driver.shutdowns.append(0)
    return driver


def driver_machine(driver: SimpleNamespace | None) -> System:
    system = recorded_system({"total_bytes": 32 * GIB, "available_bytes": 30 * GIB})
    return replace(system, load_library=lambda _name: cast("ctypes.CDLL | None", driver))


def test_the_library_gives_whole_cards_and_instances_of_divided_ones() -> None:
    driver = answering()
    found = nvml_cards(driver_machine(driver))
    assert not isinstance(found, str)
    whole, *parts = found
    assert [part.uuid for part in parts] == ["MIG-200", "MIG-201"]
    assert [part.index for part in parts] == [1, 1]
    assert whole.free_bytes == 23 * GIB
    assert whole.memory_bandwidth == pytest.approx(1008e9, rel=1e-3)
    assert parts[0].memory_bandwidth == 0
    assert len(driver.shutdowns) == 1


@pytest.mark.parametrize(("code", "cards"), [(3, 3), (15, 0)])
def test_a_card_without_own_memory_is_kept_and_a_lost_one_is_not(code: int, cards: int) -> None:
    driver = answering()
    driver.nvmlDeviceGetMemoryInfo = lambda _card, _memory: code
    devices = read_cuda(driver_machine(driver)).devices
    assert len(devices) == cards
    assert all(device.unified for device in devices)


def test_a_function_that_the_driver_lacks_leaves_the_number_unknown() -> None:
    (whole, *_) = read_cuda(driver_machine(answering())).devices
    assert whole.link_bandwidth == 0
    assert whole.uuid == "GPU-100"


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (None, "no NVIDIA driver was found"),
        (answering(18), "differ in version; restart the machine"),
        (answering(999), "NVML error 999"),
    ],
)
def test_a_driver_that_does_not_answer_is_a_reason(
    driver: SimpleNamespace | None, reason: str
) -> None:
    found = read_cuda(driver_machine(driver))
    assert found.devices == ()
    assert reason in found.absent[0]
