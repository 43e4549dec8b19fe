"""Compile every kernel for cards that need not be here: ``compile_kernels.py [8.0 8.6 ...]``.

The kernels are launched over tensors without content, and what each launch gives is compiled for
each architecture down to machine code. Prints a line a launch; exits with 1 if one does not compile.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from edgetune_torch import kernels
from edgetune_torch.kernels import gated, loss, nf4, norm, rotary
from edgetune_torch.matrices import store
from edgetune_torch.optimizer import AdamW

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "12.0")
META = torch.device("meta")
VOCABULARY = 128_256
TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.uint8: "u8",
    torch.int8: "i8", torch.int64: "i64", torch.int32: "i32",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One launch: its kernel, the types of its arguments, and its constants."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]

    def compiled(self, capability: str) -> Any:
        """Return the compiled kernel for a compute capability."""
        source = ASTSource(
            fn=self.kernel,
            signature=self.signature | dict.fromkeys(self.constants, "constexpr"),
            constexprs=self.constants,
        )
        target = GPUTarget("cuda", int(capability.replace(".", "")), 32)
        return triton.compile(source, target=target, options={"enable_fp_fusion": False})


def launches(dtype: torch.dtype) -> Iterator[Launch]:
    """Yield every different launch in a number format."""
    found: list[Launch] = []
    before = kernels.launch

    def noted(kernel: Any, _: Any, *arguments: Any, **constants: Any) -> None:
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        options = {"num_warps", "num_stages"}
        constants = {name: x for name, x in constants.items() if name not in options}
        launch = Launch(kernel, {name: _type(x) for name, x in named.items()}, constants)
        if launch not in found:
            found.append(launch)

    kernels.launch = noted
    try:
        for run in _runs(dtype):
            run()
    finally:
        kernels.launch = before
    yield from found


def _runs(dtype: torch.dtype) -> Iterator[Callable[[], None]]:
    def x(*size: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=kind, device=META).requires_grad_()

    def through(y: Tensor) -> Callable[[], None]:
        return lambda: torch.autograd.backward(y, torch.empty_like(y))

    frozen = x(4096, kind=torch.bfloat16).detach()  # as a model may store it
    yield through(norm.rms_norm(x(4, 4096), frozen, 0.0, 1e-6))
    yield through(norm.rms_norm(x(4, 128), x(128, kind=torch.float32), 1.0, 1e-6))
    tables = x(2, 1, 8, 128).detach(), x(2, 1, 8, 128).detach()
    yield through(rotary.rotate(x(2, 32, 8, 128), *tables, interleaved=False))
    yield through(rotary.rotate(x(2, 8, 8, 192), *tables, interleaved=True))
    yield through(rotary.rotate(x(2, 8, 8, 192), *tables, interleaved=True, trailing=True))
    for name in sorted(gated.NAMES):
        yield through(gated.gated_activation(x(4, 14336), x(4, 14336), name))
    targets, factors = x(4).detach().long(), x(4, kind=torch.float32).detach()
    plain = loss.Finish(bias=None, scale=1.0, softcap=None)
    own = loss.Finish(bias=x(VOCABULARY).detach(), scale=0.5, softcap=30.0)
    for finish in (plain, own):
        yield lambda finish=finish: loss.cross_entropy(
            x(4, VOCABULARY).detach(), targets, finish, factors
        )
    yield lambda: loss.cross_entropy(x(4, VOCABULARY).detach(), targets, plain)
    matrix = store(torch.zeros(64, 64, dtype=dtype), "nf4")
    parts = {name: part.to(META) for name, part in matrix.parts.items()}
    yield lambda: nf4.unpack(parts, x(64, 64).detach())
    yield _updates


def _updates() -> None:
    trained = {
        name: torch.nn.Parameter(torch.empty(size, device=META))
        for name, size in (("large", 8192), ("small", 64))
    }
    for parameter in trained.values():
        parameter.grad = torch.empty_like(parameter)
    served = kernels.served
    kernels.served = lambda _: True  # type: ignore[assignment]
    try:
        AdamW("adamw-8bit", trained, dict.fromkeys(trained, 1.0), 0.01).step(1e-3, 1)
    finally:
        kernels.served = served


def _type(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return f"*{TYPES[argument.dtype]}"
    return "fp32" if isinstance(argument, float) else "i32"


def main() -> int:
    """Compile for the capabilities that are named, or for all."""
    failed = 0
    for capability in sys.argv[1:] or CAPABILITIES:
        narrow = torch.bfloat16 if float(capability) >= 8 else torch.float16
        for launch in launches(narrow):
            began = time.process_time()
            try:
                size = len(launch.compiled(capability).asm["cubin"])
            except Exception as error:  # noqa: BLE001  # whatever a compiler says is told
                failed += 1
                print(f"{capability} {_name(launch)}: {str(error).splitlines()[-1]}")
            else:
                seconds = time.process_time() - began
                print(f"{capability} {_name(launch)}: {size} bytes, {seconds:.1f} s")
    return 1 if failed else 0


def _name(launch: Launch) -> str:
    module = launch.kernel.fn.__module__.rpartition(".")[2]
    settings = ", ".join(f"{name} {x}" for name, x in launch.constants.items())
    return f"{module}.{launch.kernel.fn.__name__} ({settings})"


if __name__ == "__main__":
    raise SystemExit(main())
