"""Cards that cannot be used are named with the reason and the line to type, from what machines say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rows import Cli, write_rows

import edgetune.device.read
from edgetune.device import read_device, read_machine
from edgetune.device.faults import TorchBuild, driver_version, torch_build
from edgetune.device.recorded import recorded_system
from edgetune.device.smi import COMMAND
from edgetune.device.system import this_system

GIB = 2**30
SMI = " ".join(COMMAND)
DRIVER = "nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader"
RTX = "0, GPU-1, NVIDIA GeForce RTX 4060 Laptop GPU, 8188, 7000, 4, 8\n"
GTX = "0, GPU-1, NVIDIA GeForce GTX 1080, 8192, 7900, 3, 16\n"
PROC_DRIVER = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024\n"
    "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n"
)
OPEN_DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (x)\n"
)
PCI = "0100\t10de2684\t10\t        f6000000\t      f800000c\n0030\t80868c31\t1b\n"
SITE = "/site/torch"


def built(version: str, cuda: str | None = None, hip: str | None = None) -> str:
    """Return ``torch/version.py`` as torch's builds have it."""
    return (
        "from typing import Optional\n\n__all__ = ['__version__', 'debug', 'cuda', 'hip']\n"
        f"__version__ = {version!r}\ndebug = False\ncuda: Optional[str] = {cuda!r}\n"
        f"git_version = 'cf30153c'\nhip: Optional[str] = {hip!r}\nxpu: Optional[str] = None\n"
    )


def machine(
    torch: str | None,
    *,
    cards: str = "",
    driver: str = "",
    files: dict[str, str] | None = None,
    packages: Sequence[str] = ("bitsandbytes", "triton"),
    compiler: bool = True,
    **facts: Any,
) -> Any:
    """Return a machine with a build of torch, None for none, and what its tools say."""
    modules = {} if torch is None else {"torch": SITE}
    modules |= {name: f"/site/{name}" for name in packages}
    said = {SMI: cards, DRIVER: driver, "gcc --version": "gcc 12.2.0" if compiler else ""}
    return recorded_system(
        {
            "total_bytes": 16 * GIB,
            "available_bytes": 12 * GIB,
            "modules": modules,
            "files": {f"{SITE}/version.py": torch or "", **(files or {})},
            "commands": {name: text for name, text in said.items() if text},
            **facts,
        }
    )


CPU, CU128, CU130 = built("2.13.0+cpu"), built("2.8.0+cu128", "12.8"), built("2.13.0", "13.0")
ROCM = built("2.8.0+rocm6.4", hip="6.4.43482")


def test_torchs_build_is_read_without_importing_it() -> None:
    assert torch_build(machine(CPU)) == TorchBuild("2.13.0+cpu", None, None)
    assert torch_build(machine(CU128)) == TorchBuild("2.8.0+cu128", "12.8", None)
    assert torch_build(machine(ROCM)) == TorchBuild("2.8.0+rocm6.4", None, "6.4.43482")
    assert torch_build(machine(None)) is None
    assert torch_build(machine("nonsense")) is None


def test_this_machines_torch_says_what_torch_says() -> None:
    torch = pytest.importorskip("torch")
    assert torch_build(this_system()) == TorchBuild(
        str(torch.__version__), torch.version.cuda, torch.version.hip
    )


@pytest.mark.parametrize(
    ("system", "because", "do"),
    [
        (machine(CPU, cards=RTX), "this torch (2.13.0+cpu) is built for processors only",
         "pip uninstall -y torch, then: pip install torch"),
        (machine(CPU, cards=RTX, platform="win32"), "is built for processors only",
         "https://pytorch.org/get-started/locally"),
        (machine(ROCM, cards=RTX), "this torch (2.8.0+rocm6.4) is built for ROCm",
         "pip install torch"),
        (machine(None, cards=RTX), "torch is not installed", "pip install torch"),
        (machine(CU128, cards=RTX, driver="470.256.02, 8.9\n"),
         "its driver 470.256.02 is too old: torch 2.8.0+cu128 for CUDA 12.8 needs 525.60 or later",
         "Update the NVIDIA driver"),
        (machine(CU130, cards=RTX, driver="570.133.07, 8.9\n"), "needs 580.65 or later", "Update"),
        (machine(CU128, cards=RTX, files={"/proc/driver/nvidia/version": PROC_DRIVER}),
         "its driver 470.256.02 is too old", "Update the NVIDIA driver"),
        (machine(CU130, cards=GTX, driver="580.82.07, 6.1\n"),
         "needs compute capability 7.5, the card has 6.1", "built for CUDA 12.6"),
    ],
    ids=["cpu", "cpu on Windows", "rocm", "no torch", "old driver 12", "old driver 13",
         "old driver in /proc", "old card"],
)  # fmt: skip
def test_a_card_that_torch_cannot_use(system: Any, because: str, do: str) -> None:
    card = read_device("cuda", system)

    assert card.fault is not None
    assert card.fault.what == card.name
    assert because in card.fault.because
    assert do in card.fault.do
    assert str(card.fault).startswith(f"{card.name} cannot be used: ")


@pytest.mark.parametrize(
    ("build", "driver"),
    [(CU128, "550.54.14, 8.9\n"), (CU130, "580.82.07, 7.5\n"), (CU128, "525.60.13, 6.1\n"),
     (CU128, "[N/A], [N/A]\n"), (CU128, ""), (built("2.9.0+cu999", "99.9"), "1.0, 1.0\n")],
)  # fmt: skip
def test_a_card_against_which_nothing_speaks(build: str, driver: str) -> None:
    assert read_device("cuda", machine(build, cards=RTX, driver=driver)).fault is None


@pytest.mark.parametrize(
    ("missing", "served", "told"),
    [
        ({}, True, ()),
        ({"packages": ("bitsandbytes",)}, False, ("pip install triton",)),
        ({"compiler": False}, False, ("sudo apt install gcc python3-dev",)),
        ({"packages": ("triton",)}, True, ()),
        ({"packages": ()}, False, ("pip install triton", "pip install bitsandbytes")),
        ({"compiler": False, "environment": {"CC": "/opt/cc"}}, True, ()),
    ],
)
def test_kernels_are_there_or_what_to_type_is(
    missing: dict[str, Any], served: bool, told: Sequence[str]
) -> None:
    card = read_device("cuda", machine(CU128, cards=RTX, driver="550.54.14, 8.9\n", **missing))

    assert card.fault is None
    assert card.kernels is served
    typed = [note.partition("Type: ")[2] for note in card.notes if "Type: " in note]
    assert typed == list(told)


def test_the_driver_is_read_wherever_it_says_its_version() -> None:
    assert driver_version(machine(CPU, driver="550.54.14, 8.9\n")) == "550.54.14"
    files = {"/proc/driver/nvidia/version": OPEN_DRIVER}
    assert driver_version(machine(CPU, files=files)) == "580.82.07"
    assert driver_version(machine(CPU)) is None


@pytest.mark.parametrize(
    ("files", "what", "because"),
    [
        ({"/proc/bus/pci/devices": PCI}, "NVIDIA card", "driver is not installed or not loaded"),
        ({"/sys/class/drm/card1/device/vendor": "0x10de\n", "/proc/modules": "nouveau 2301952 1\n"},
         "NVIDIA card", "the open nouveau driver is loaded"),
        ({"/sys/class/drm/card0/device/vendor": "0x1002\n"}, "AMD graphics", "no backend for ROCm"),
        ({"/sys/class/drm/card0/device/vendor": "0x8086\n"}, "Intel graphics", "no backend for XPU"),
    ],
    ids=["nvidia", "nouveau", "amd", "intel"],
)  # fmt: skip
def test_a_card_that_nothing_computes_on(files: dict[str, str], what: str, because: str) -> None:
    (fault,) = read_machine(machine(CPU, files=files)).faults

    assert fault.what == what
    assert because in fault.because
    assert fault.do


def test_torch_for_rocm_is_said_to_change_nothing() -> None:
    files = {"/sys/class/drm/card0/device/vendor": "0x1002\n"}
    (fault,) = read_machine(machine(ROCM, files=files)).faults

    assert "torch for ROCm changes nothing about that" in fault.because


def test_a_card_with_its_driver_is_no_fault_of_the_machine() -> None:
    found = read_machine(machine(CU128, cards=RTX, files={"/proc/bus/pci/devices": PCI}))

    assert found.faults == ()
    assert found.devices[0].fault is None


def test_the_best_device_that_can_be_used_is_taken_and_says_instead_of_what() -> None:
    taken = read_device("auto", machine(CPU, cards=RTX))
    assert (taken.kind, [f.what for f in taken.passed_over]) == (
        "cpu", ["NVIDIA GeForce RTX 4060 Laptop GPU"],
    )  # fmt: skip
    assert read_device("auto", machine(CU128, cards=RTX)).kind == "cuda"
    nothing_installed = read_device("auto", machine(None, cards=RTX))
    assert (nothing_installed.kind, nothing_installed.passed_over) == ("cuda", ())
    amd = {"/sys/class/drm/card0/device/vendor": "0x1002\n"}
    assert [f.what for f in read_device("auto", machine(CPU, files=amd)).passed_over] == [
        "AMD graphics"
    ]
    intel = {"/sys/class/drm/card0/device/vendor": "0x8086\n"}
    assert read_device("auto", machine(CPU, files=intel)).passed_over == ()


def test_apple_silicon_without_mlx() -> None:
    facts = {
        "platform": "darwin", "architecture": "arm64", "total_bytes": 8 * GIB,
        "available_bytes": 5 * GIB, "modules": {},
        "commands": {"/usr/sbin/sysctl -n machdep.cpu.brand_string": "Apple M2\n"},
    }  # fmt: skip
    fault = read_device("mlx", recorded_system(facts)).fault

    assert fault is not None
    assert (fault.what, fault.do) == ("Apple M2", "Type: pip install mlx mlx-lm")
    facts["modules"] = {"mlx": "/site/mlx"}
    assert read_device("mlx", recorded_system(facts)).fault is None


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line on a laptop with a card and a torch for processors only."""
    monkeypatch.chdir(tmp_path)
    system = machine(CPU, cards=RTX, cores=4, clock=3e9)
    monkeypatch.setattr(edgetune.device.read, "this_system", lambda: system)
    return Cli(capsys)


def test_a_plan_says_what_cannot_be_used(cli: Cli) -> None:
    shown = cli("plan", "--model", "tiny", "-q")
    assert shown.code == 0
    assert "(cpu)" in shown.out
    assert "this torch (2.13.0+cpu)" in shown.out

    shown = cli("plan", "--model", "tiny", "--device", "cuda", "-q", "--output", "other.yaml")
    assert shown.code == 0
    assert "- Nothing runs here yet: NVIDIA GeForce RTX 4060 Laptop GPU cannot be" in shown.out


def test_training_on_it_is_refused_before_anything_is_read(cli: Cli) -> None:
    write_rows(Path("rows.jsonl"))
    called = cli("train", "--model", "tiny", "--data", "rows.jsonl", "--device", "cuda")

    assert called.code == 2
    assert "built for processors only" in called.err
    assert "pip install torch" in called.err
    assert not Path("runs").exists()
    assert cli("train", "--model", "tiny", "--data", "rows.jsonl", "--device", "cuda",
               "--dry-run", "-q").code == 0  # fmt: skip
