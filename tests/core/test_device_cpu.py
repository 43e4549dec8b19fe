"""The processor: this one, and its limits under every arrangement of control groups."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device import list_devices, read_device
from edgetune.device.cpu import dots_bfloat16, host_memory, read_cpu
from edgetune.device.recorded import recorded_system
from edgetune.device.system import System, this_system

LIMITS = st.one_of(st.none(), st.just("max"), st.integers(0, 10**19).map(str), st.just(""))


def test_this_machine_is_read() -> None:
    device = read_device("cpu")
    assert (device.kind, device.backend, device.here) == ("cpu", "torch", True)
    assert 0 < device.usable_bytes < device.free_bytes <= device.total_bytes
    assert list_devices()[-1].kind == "cpu"


def test_the_system_answers_with_nothing_where_there_is_nothing() -> None:
    system = this_system()
    assert system.read_text("/no/such/file") is None
    assert system.run(("no-such-command",)) is None
    assert system.run((sys.executable, "-c", "raise SystemExit(3)")) is None
    assert system.run((sys.executable, "-c", "print('yes')")) == "yes\n"
    assert system.load_library("no-such-library.so") is None
    assert system.has_module("yaml")


def test_reading_the_machine_imports_no_framework() -> None:
    code = (
        "import sys, edgetune.device as d; d.read_machine();"
        "sys.exit(bool({'torch', 'mlx', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def nested(limits: list[str | None], used: int) -> System:
    """Return a machine of 16 GB whose process sits below one group for each limit."""
    files = {
        "/proc/self/cgroup": f"0::{'/g' * len(limits)}\n",
        "/proc/self/mountinfo": "31 23 0:28 / /cg rw - cgroup2 cgroup2 rw\n",
    }
    for depth, limit in enumerate(limits, start=1):
        folder = "/cg" + "/g" * depth
        files[f"{folder}/memory.current"] = str(used)
        if limit is not None:
            files[f"{folder}/memory.max"] = limit
    return recorded_system({"total_bytes": 16 * 10**9, "available_bytes": 10**10, "files": files})


@given(st.lists(LIMITS, max_size=5), st.integers(0, 2 * 10**10))
def test_free_memory_is_the_least_of_all_levels(limits: list[str | None], used: int) -> None:
    numbers = [int(limit) for limit in limits if limit and limit.isdigit()]
    left = [max(0, number - used) for number in numbers if number < 16 * 10**9]
    assert host_memory(nested(limits, used)).free == min([10**10, *left])


@given(st.text(max_size=200), st.text(max_size=200))
def test_nonsense_in_proc_is_no_limit(groups: str, mounts: str) -> None:
    files = {"/proc/self/cgroup": groups, "/proc/self/mountinfo": mounts}
    facts = {"total_bytes": 10**10, "available_bytes": 9 * 10**9, "files": files}
    assert host_memory(recorded_system(facts)).free == 9 * 10**9


@pytest.mark.parametrize(
    ("flags", "per_cycle_32", "per_cycle_16"),
    [
        ("avx fma avx2", 32, 32),
        ("avx fma avx2 avx512f", 32, 32),
        ("avx fma avx2 avx512f avx512_bf16", 32, 64),
        ("avx fma avx2 avx512f avx512_bf16 amx_bf16", 64, 2048),
        ("sse2 avx", 0, 0),
    ],
)
def test_rates_follow_the_vector_units(flags: str, per_cycle_32: int, per_cycle_16: int) -> None:
    files = {"/proc/cpuinfo": f"model name\t: A processor\nflags\t\t: {flags}\n"}
    facts = {"total_bytes": 10**10, "available_bytes": 10**10, "clock": 2e9, "cores": 4}
    device = read_cpu(recorded_system({**facts, "files": files}))
    assert device.name == "A processor"
    assert device.multiplies_16bit == (per_cycle_16 > per_cycle_32)
    assert device.rate_32bit == 4 * 2e9 * per_cycle_32
    assert device.rate_16bit == 4 * 2e9 * per_cycle_16
    assert ("estimated" if per_cycle_32 else "unknown") in device.because


EVERY = "avx2 fma avx512f avx512bw avx512dq avx512vl avx512_bf16"


@pytest.mark.parametrize(
    ("flags", "served"),
    [(EVERY, True), (EVERY.replace("avx512bw ", ""), False), ("avx2 fma", False)],
    ids=["all", "one is hidden", "none"],
)
def test_kernels_are_for_processors_with_all_that_they_are_compiled_for(
    flags: str, served: bool
) -> None:
    files = {"/proc/cpuinfo": f"flags\t\t: {flags}\n"}
    facts = {"total_bytes": 10**10, "available_bytes": 10**10}
    assert dots_bfloat16(recorded_system({**facts, "files": files})) == served


def test_without_a_clock_the_rates_are_unknown() -> None:
    facts = {"total_bytes": 10**10, "available_bytes": 10**10, "architecture": "aarch64"}
    device = read_cpu(recorded_system(facts))
    assert (device.rate_16bit, device.rate_32bit) == (0, 0)
    assert "the clock cannot be read" in device.because


@pytest.mark.parametrize(("features", "multiplies"), [("fp asimd bf16", True), ("fp asimd", False)])
def test_a_processor_multiplies_16_bits_whatever_else_is_known_of_it(
    features: str, multiplies: bool
) -> None:
    files = {"/proc/cpuinfo": f"processor\t: 0\nFeatures\t: {features}\n"}
    facts = {"total_bytes": 10**10, "available_bytes": 10**10, "architecture": "aarch64"}
    hidden = read_cpu(recorded_system({**facts, "files": files}))
    assert hidden.multiplies_16bit == multiplies
    known = read_cpu(recorded_system({**facts, "files": files, "clock": 2e9}))
    assert known.multiplies_16bit == (known.rate_16bit > known.rate_32bit) == multiplies


@pytest.mark.parametrize(
    ("limit", "multiplies"),
    [("avx2", False), ("AVX512_CORE", False), ("AVX512_CORE_BF16", True), ("DEFAULT", True)],
)
def test_products_that_onednn_may_not_use_do_not_count(limit: str, multiplies: bool) -> None:
    device = read_cpu(
        recorded_system(
            {
                "total_bytes": 10**10, "available_bytes": 10**10, "clock": 2e9,
                "files": {"/proc/cpuinfo": "flags\t: avx2 fma avx512f avx512_bf16\n"},
                "environment": {"ONEDNN_MAX_CPU_ISA": limit},
            }
        )
    )  # fmt: skip
    assert device.multiplies_16bit == (device.rate_16bit > device.rate_32bit) == multiplies
