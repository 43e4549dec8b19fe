"""Quantized matrices as their formats are published, and the numbers that they stand for.

Every writer takes a matrix (N, K) and returns the tensors of a module, by what comes after its name,
with the numbers (N, K) that reading has to give: computed here one group after the other, by the
formula, in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Written = tuple[dict[str, Tensor], Tensor]
Writer = Callable[[Tensor], Written]


@dataclass(frozen=True)
class Format:
    """A way to publish a model: what the config says, and how a matrix is written."""

    settings: Mapping[str, Any]
    writer: Writer
    dtype: torch.dtype = torch.bfloat16
    """Of the other tensors."""
    place: str = "quantization_config"
    kept_as: str | None = None
    """The format of ours that has the same codes."""
    outer: bool = False
    """Whether the embedding is quantized, too."""
    others: Mapping[str, Any] = field(default_factory=dict)


def fp8(block: tuple[int, int] | None, *, name: str = "weight_scale_inv", dtype: torch.dtype,
        extra: tuple[str, ...] = (), scalar: bool = False) -> Writer:  # fmt: skip
    """Return a writer of eight-bit floats; no block: one scale a row, or a matrix."""

    def write(w: Tensor) -> Written:
        rows, columns = block or ((len(w), w.shape[1]) if scalar else (1, w.shape[1]))
        grid = torch.empty(-(-len(w) // rows), -(-w.shape[1] // columns))
        codes, values = torch.empty_like(w, dtype=torch.float8_e4m3fn), torch.empty_like(w)
        for i in range(len(grid)):
            for j in range(grid.shape[1]):
                place = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
                grid[i, j] = (w[place].abs().max() / 448).to(dtype).float()
                codes[place] = (w[place] / grid[i, j]).clamp(-448, 448).to(codes.dtype)
                values[place] = codes[place].float() * grid[i, j]
        stored = grid.to(dtype)
        tensors = {"weight": codes, name: stored.reshape(()) if scalar else stored}
        return tensors | {each: torch.tensor(0.5) for each in extra}, values

    return write


QUANTILES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0.0, 0.0052083333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)


def blockwise(kind: str, *, nested: bool = True, block: int = 64, storage: torch.dtype = torch.uint8,
              dtype: str = "bfloat16") -> Writer:  # fmt: skip
    """Return a writer of bitsandbytes' four bits; scales in eight bits where ``nested``."""
    table = torch.tensor(QUANTILES if kind == "nf4" else (*FP4, *(-x for x in FP4)))

    def write(w: Tensor) -> Written:
        from bitsandbytes.functional import create_dynamic_map

        flat = w.reshape(-1)
        blocks = [flat[i : i + block] for i in range(0, len(flat), block)]
        scales = torch.stack([each.abs().max() for each in blocks])
        state: dict[str, Any] = {
            "quant_type": kind, "blocksize": block, "dtype": dtype, "shape": list(w.shape)}  # fmt: skip
        tensors = {"quant_map": table.clone(), "absmax": scales}
        if nested:
            offset, inner = scales.mean(), create_dynamic_map().to(torch.float32)
            groups = [scales[i : i + 256] - offset for i in range(0, len(scales), 256)]
            largest = torch.stack([each.abs().max() for each in groups])
            codes = [
                (each[:, None] / top - inner).abs().argmin(1)
                for each, top in zip(groups, largest, strict=True)
            ]
            scales = torch.cat(
                [inner[c] * top + offset for c, top in zip(codes, largest, strict=True)]
            )
            tensors |= {
                "absmax": torch.cat(codes).to(torch.uint8),
                "nested_absmax": largest,
                "nested_quant_map": inner,
            }
            state |= {"nested_blocksize": 256, "nested_dtype": "float32",
                      "nested_offset": offset.item()}  # fmt: skip
        numbers = [
            (each[:, None] / scale - table).abs().argmin(1)
            for each, scale in zip(blocks, scales, strict=True)
        ]
        values = torch.cat([table[c] * s for c, s in zip(numbers, scales, strict=True)])
        flat_codes = torch.cat(numbers).to(torch.uint8)
        flat_codes = torch.cat((flat_codes, torch.zeros(len(flat_codes) % 2, dtype=torch.uint8)))
        packed = (flat_codes[::2] << 4 | flat_codes[1::2]).view(storage)[:, None]
        told = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        named = {f"weight.{name}": x for name, x in tensors.items()}
        return (
            {"weight": packed, f"weight.quant_state.bitsandbytes__{kind}": told} | named,
            values.view(w.shape),
        )

    return write


def eight_bits(w: Tensor) -> Written:
    """Write bitsandbytes' eight bits: whole numbers, of which 127 is the largest of a row."""
    largest = w.abs().amax(1)
    codes = (w * (127 / largest)[:, None]).round().to(torch.int8)
    tensors = {
        "weight": codes,
        "SCB": largest,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return tensors, codes.float() * (largest * (1 / 127))[:, None]


def words(codes: Tensor, bits: int) -> Tensor:
    """Return rows of codes (R, C) as 32-bit words (R, C bits / 32), bit by bit."""
    width = -(-codes.shape[1] * bits // 32)
    stream = torch.zeros(len(codes), width * 32, dtype=torch.int64)
    for bit in range(bits):
        stream[:, bit : codes.shape[1] * bits : bits] = codes.long() >> bit & 1
    packed = (stream.view(len(codes), width, 32) << torch.arange(32)).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def _groups(w: Tensor, group: int, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return scales, zeros (groups, N) and the group of each input, of runs of ``group``."""
    index = torch.arange(w.shape[1]) // group
    count = int(index[-1]) + 1
    scales, zeros = torch.empty(count, len(w)), torch.empty(count, len(w))
    for i in range(count):
        part = w[:, index == i]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scales[i] = ((high - low) / (2**bits - 1)).to(dtype).float()
        zeros[i] = (-low / scales[i]).round().clamp(0, 2**bits - 1)
    return scales, zeros, index


def _coded(w: Tensor, scales: Tensor, zeros: Tensor, index: Tensor, bits: int) -> Written:
    """Return the codes (N, K) as ``codes``, and the numbers that they stand for."""
    s, z = scales[index].T, zeros[index].T
    codes = (w / s + z).round().clamp(0, 2**bits - 1)
    return {"codes": codes.int()}, (codes - z) * s


def gptq(bits: int, group: int, *, version: int = 1, ordered: bool = True, index: bool = True,
         dtype: torch.dtype = torch.float16) -> Writer:  # fmt: skip
    """Return a writer of GPTQ; ``ordered`` is false for inputs whose groups are mixed."""

    def write(w: Tensor) -> Written:
        order = torch.arange(w.shape[1])
        if not ordered:
            order = torch.randperm(w.shape[1], generator=torch.Generator().manual_seed(7))
        scales, zeros, runs = _groups(w[:, order], group, bits, dtype)
        groups = torch.empty_like(runs)
        groups[order] = runs
        coded, values = _coded(w, scales, zeros, groups, bits)
        stored = (zeros.int() - int(version == 1)) & (2**bits - 1)
        tensors = {
            "qweight": words(coded["codes"], bits).T.contiguous(),
            "qzeros": words(stored, bits),
            "scales": scales.to(dtype),
        }
        return tensors | ({"g_idx": groups.int()} if index else {}), values

    return write


def awq(group: int) -> Writer:
    """Return a writer of AWQ for gemm kernels."""

    def write(w: Tensor) -> Written:
        scales, zeros, index = _groups(w, group, 4, torch.float16)
        coded, values = _coded(w, scales, zeros, index, 4)
        order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])

        def packed(codes: Tensor) -> Tensor:
            mixed = codes.view(len(codes), -1, 8)[..., order]
            return words(mixed.reshape(len(codes), -1), 4)

        return {
            "qweight": packed(coded["codes"].T.contiguous()),
            "qzeros": packed(zeros.int()),
            "scales": scales.half(),
        }, values

    return write


def pack_quantized(bits: int, group: int, *, symmetric: bool = True, mixed: bool = False) -> Writer:
    """Return a writer of compressed-tensors' whole numbers; ``mixed``: with groups by input."""

    def write(w: Tensor) -> Written:
        middle = 2 ** (bits - 1)
        scales, zeros, index = _groups(w, group, bits, torch.bfloat16)
        if mixed:
            index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(5))]
            scales = (w.abs().amax() / (middle - 1)).to(torch.bfloat16).float().expand_as(scales)
            scales = scales * torch.arange(1, len(scales) + 1)[:, None]
        if symmetric:
            zeros = torch.full_like(zeros, middle)
        coded, values = _coded(w, scales, zeros, index, bits)
        tensors = {
            "weight_packed": words(coded["codes"], bits),
            "weight_scale": scales.T.contiguous().to(torch.bfloat16),
            "weight_shape": torch.tensor(w.shape),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words(zeros.int(), bits).T.contiguous()
        if mixed:
            tensors["weight_g_idx"] = index.int()
        return tensors, values

    return write


def int_quantized(*, symmetric: bool) -> Writer:
    """Return a writer of compressed-tensors' eight bits, one scale a row."""

    def write(w: Tensor) -> Written:
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
        scale = (high - low) / 255 if not symmetric else w.abs().amax(1, keepdim=True) / 127
        scale = scale.to(torch.bfloat16).float()
        zero = (-128 - low / scale).round().clamp(-128, 127) if not symmetric else 0 * low
        codes = (w / scale + zero).round().clamp(-128, 127)
        tensors = {"weight": codes.to(torch.int8), "weight_scale": scale.to(torch.bfloat16),
                   "input_scale": torch.ones(1)}  # fmt: skip
        if not symmetric:
            tensors["weight_zero_point"] = zero.to(torch.int8)
        return tensors, (codes - zero) * scale

    return write


E2M1 = torch.tensor((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))


def fp4(group: int) -> Writer:
    """Return a writer of compressed-tensors' four-bit floats: MX FP4 (32) or NV FP4 (16)."""

    def write(w: Tensor) -> Written:
        parts = w.reshape(len(w), -1, group)
        largest = parts.abs().amax(-1)
        if group == 32:
            exponents = (largest / 6).log2().ceil().clamp(-126, 126)
            stored, scales, total = (exponents + 127).to(torch.uint8), exponents.exp2(), None
        else:
            total = torch.tensor([448 * 6 / float(w.abs().max())])
            stored = (largest / 6 * total).to(torch.float8_e4m3fn)
            scales = stored.float() / total
        table = torch.cat((E2M1, -E2M1))
        codes = (parts[..., None] / scales[..., None, None] - table).abs().argmin(-1)
        values = (table[codes] * scales[..., None]).view(w.shape)
        codes = codes.view(w.shape).to(torch.uint8)
        tensors = {"weight_packed": codes[:, ::2] | codes[:, 1::2] << 4, "weight_scale": stored}
        return tensors | ({} if total is None else {"weight_global_scale": total}), values

    return write


def mlx(bits: int, group: int, mode: str = "affine", dtype: str = "bfloat16") -> Writer:
    """Return a writer that is mlx's own."""

    def write(w: Tensor) -> Written:
        import mlx.core as mx

        matrix = mx.array(w.numpy()).astype(getattr(mx, dtype))
        parts = mx.quantize(matrix, group, bits, mode)
        biases = parts[2] if parts[2:] else None
        numbers = mx.dequantize(parts[0], parts[1], biases, group, bits, mode)
        named = zip(("weight", "scales", "biases"), map(_of_mlx, parts), strict=False)
        return dict(named), _of_mlx(numbers).float()

    return write


def _of_mlx(x: Any) -> Tensor:
    import mlx.core as mx
    import numpy as np

    if x.dtype == mx.bfloat16:
        bits = np.asarray(x.view(mx.uint16)).view(np.int16)
        return torch.from_numpy(bits.copy()).view(torch.bfloat16)
    return torch.from_numpy(np.asarray(x).copy())


def _compressed(written: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": written, "config_groups": {"group_0": group},
            "ignore": ["lm_head"]}  # fmt: skip


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
_BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
_GPTQ = {"quant_method": "gptq", "group_size": 16}
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16

FORMATS: dict[str, Format] = {
    "fp8 blocks": Format(
        _FP8 | {"weight_block_size": [16, 24]}, fp8((16, 24), dtype=FLOAT32)),
    "fp8 tensor": Format(
        _FP8 | {"activation_scheme": "static", "weight_block_size": None},
        fp8(None, dtype=BFLOAT16, scalar=True, extra=("activation_scale",))),
    "fp8 rows": Format(
        _compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        fp8(None, name="weight_scale", dtype=BFLOAT16, extra=("input_scale",))),
    "fbgemm": Format(
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        fp8(None, name="weight_scale", dtype=FLOAT32)),
    "fp8 grid": Format(
        _compressed("float-quantized", num_bits=8, strategy="block", block_structure=[16, 24]),
        fp8((16, 24), name="weight_scale", dtype=BFLOAT16)),
    "nf4": Format(_BNB, blockwise("nf4"), kept_as="nf4"),
    "nf4 flat": Format(_BNB, blockwise("nf4", nested=False)),
    "nf4 stored as bfloat16": Format(
        _BNB, blockwise("nf4", storage=BFLOAT16), kept_as="nf4"),
    "fp4": Format(_BNB, blockwise("fp4", nested=False, dtype="float16")),
    "int8": Format(
        {"quant_method": "bitsandbytes", "load_in_8bit": True}, eight_bits, kept_as="int8"),
    "gptq": Format(_GPTQ | {"bits": 4}, gptq(4, 16), dtype=torch.float16),
    "gptq v2": Format(
        _GPTQ | {"bits": 4, "checkpoint_format": "gptq_v2"}, gptq(4, 16, version=2, index=False),
        dtype=torch.float16),
    "gptq by activation": Format(
        _GPTQ | {"bits": 8, "desc_act": True}, gptq(8, 16, ordered=False), dtype=torch.float16),
    "gptq in three": Format(
        _GPTQ | {"bits": 3, "group_size": -1}, gptq(3, 1 << 20, dtype=BFLOAT16)),
    "awq": Format(
        {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}, awq(16),
        dtype=torch.float16),
    "packed": Format(
        _compressed("pack-quantized", num_bits=4, group_size=16), pack_quantized(4, 16)),
    "packed, one-sided": Format(
        _compressed("pack-quantized", num_bits=8, strategy="channel", symmetric=False),
        pack_quantized(8, 1 << 20, symmetric=False)),
    "packed by activation": Format(
        _compressed("pack-quantized", num_bits=4, group_size=16), pack_quantized(4, 16, mixed=True)),
    "whole numbers": Format(
        _compressed("int-quantized", num_bits=8), int_quantized(symmetric=True), kept_as="int8"),
    "whole numbers, one-sided": Format(
        _compressed("int-quantized", num_bits=8), int_quantized(symmetric=False)),
    "mx fp4": Format(_compressed("mxfp4-pack-quantized"), fp4(32), kept_as="mxfp4"),
    "nv fp4": Format(_compressed("nvfp4-pack-quantized"), fp4(16)),
    "mlx in four": Format(
        {"group_size": 32, "bits": 4}, mlx(4, 32), place="quantization", outer=True),
    "mlx in four of 64": Format(
        {"group_size": 64, "bits": 4}, mlx(4, 64), place="quantization", outer=True, kept_as="q4",
        others={"intermediate_size": 128, "head_dim": 16}),
    "mlx in six": Format(
        {"group_size": 32, "bits": 6, "mode": "affine"}, mlx(6, 32), place="quantization"),
    "mlx in mxfp4": Format(
        {"group_size": 32, "bits": 4, "mode": "mxfp4"}, mlx(4, 32, "mxfp4"), place="quantization",
        kept_as="mxfp4"),
    "mlx in nvfp4": Format(
        {"group_size": 16, "bits": 4, "mode": "nvfp4"}, mlx(4, 16, "nvfp4"), place="quantization",
        kept_as="nvfp4"),
    "mlx in mxfp8": Format(
        {"group_size": 32, "bits": 8, "mode": "mxfp8"}, mlx(8, 32, "mxfp8"), place="quantization"),
}  # fmt: skip
