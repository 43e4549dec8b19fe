"""Bytes of a block's forward pass, in the order in which the engine computes it.

A mirror of the torch engine's block: what its functions hold while they run, and what autograd
keeps for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgetune.memory import additions, attention, lazy_mixers, per_layer, pointwise, products
from edgetune.memory.attention import Heads
from edgetune.memory.block import DOWN, FIRST_HALF, GATE, GATES, OUTPUT, READING, Block
from edgetune.memory.gathered import Gathered
from edgetune.memory.ledger import Ledger
from edgetune.network.adaptation import Sublayer
from edgetune.shape import Attention, Experts, GatedDelta, ShortConvolution
from edgetune.storage import FLOAT32_BYTES


@dataclass(slots=True)
class Saved:
    """What autograd keeps of a block, in bytes, by the part that lets go of it."""

    entry_norm: int = 0
    reading: int = 0
    low: dict[str, int] = field(default_factory=dict)
    heads_norm: int = 0
    attended: int = 0
    prompt: int = 0
    adapters: dict[str, int] = field(default_factory=dict)
    scaled: dict[str, int] = field(default_factory=dict)
    output_norm: int = 0
    middle: int = 0
    middle_norm: int = 0
    mlp_reading: int = 0
    gates: int = 0
    active: int = 0
    last_norm: int = 0
    per_layer: int = 0
    per_layer_norm: int = 0
    output: int = 0


class Forward:
    """The forward pass of a block; without ``grad`` nothing but the output stays."""

    def __init__(self, block: Block, ledger: Ledger, *, grad: bool, training: bool = True) -> None:
        self.block, self.ledger, self.grad, self.training = block, ledger, grad, training
        self.rows, self.shape = block.rows, block.shape
        self.hidden = block.rows.activation_bytes(block.hidden_size)
        self.saved = Saved()

    def run(self) -> Saved:
        attended = self._first_half()
        shared = self._shared_norm
        middle = self.ledger.alloc(self.hidden)
        out = self._mlp()
        self.saved.output = self.ledger.alloc(self.hidden)
        self.ledger.free(attended + out + shared)
        if self.shape.per_layer:
            per_layer.forward(self)
        if self.shape.scalar is not None:
            self.ledger.transient(self.hidden)
        if self.grad and self._middle_is_saved():
            self.saved.middle = middle
        else:
            self.ledger.free(middle)
        return self.saved

    @property
    def _shared_norm(self) -> int:
        """Return the bytes of what both halves read, where that is not kept anyway."""
        if not self.shape.parallel or "mlp_input" in self.shape.norm_by_role:
            return 0
        kept = self.grad and self.block.saves_input(READING)
        return 0 if kept else self.ledger.alloc(self.hidden)

    def _middle_is_saved(self) -> bool:
        """Tell whether what the second half reads is kept: a layer norm keeps a wide copy."""
        if self.shape.parallel:
            return False
        if "mlp_input" not in self.shape.norm_by_role:
            return self.block.saves_input(GATES)
        copied = self.block.norm.kind == "layer" and self.rows.width != FLOAT32_BYTES
        return not copied and self.block.reached(*self.block.before_mlp)

    def _first_half(self) -> int:
        """Return the bytes of the mixer's output, which stays until the block is done."""
        mixer = self.shape.mixer
        return self._attention() if isinstance(mixer, Attention) else self._mixed(mixer)

    def _mixed(self, mixer: ShortConvolution | GatedDelta) -> int:
        """Return the bytes of the output of a mixer that is not attention."""
        ledger, saved, block, rows = self.ledger, self.saved, self.block, self.rows
        reading = self._norm("attention_input", "entry_norm")
        made = sum(self._project(role) for role in ("conv_in", "delta_qkv", "delta_b", "delta_a"))
        out = lazy_mixers.mixed_forward(ledger, rows, mixer)
        kept = self.grad and block.reached(READING)
        ledger.free(0 if kept else made)
        saved.attended = made * kept
        if isinstance(mixer, GatedDelta):
            out = self._gated(mixer, out)
        result = self._project("conv_out") + self._project("delta_out")
        out_kept = self.grad and block.saves_input(OUTPUT)
        ledger.free(0 if out_kept else out)
        saved.attended += out * out_kept
        result = self._adapted("attention", result)
        if self.grad and block.saves_input(READING | GATE):
            saved.reading = reading
        else:
            ledger.free(reading)
        return result

    def _gated(self, mixer: GatedDelta, out: int) -> int:
        """Return the bytes of what a mixer read, normalised and gated."""
        ledger, saved, rows = self.ledger, self.saved, self.rows
        size, columns = mixer.value_dim, mixer.values
        weight_bytes = pointwise.norm_forward(ledger, self.block.norm, size, rows, columns)
        gate = self._project("delta_z")
        gated = ledger.alloc(rows.activation_bytes(columns))
        before = out + weight_bytes if self.grad and self.block.reached(READING) else 0
        both = 2 * gate if self.grad and self.block.reached(READING, GATE) else 0
        saved.attended += before + both
        ledger.free(out + weight_bytes - before + 2 * gate - both)
        return gated

    def _attention(self) -> int:
        """Return the bytes of the output of attention."""
        ledger, saved, block, rows = self.ledger, self.saved, self.block, self.rows
        reading = self._norm("attention_input", "entry_norm")
        original, lent = self._projected()
        heads = Heads.of(self.shape)
        rotated = self._rotated(heads)
        ledger.free(lent)
        made = original - lent + rotated
        prefix, prompt = block.footprint.prefix, block.footprint.prompt
        if prefix:
            ledger.transient(prefix * heads.queries * rows.width)
            before, rows = made, additions.preceded(rows, prefix)
            made = ledger.alloc(
                rows.activation_bytes(heads.all) + additions.prefix_bytes(heads.keys, prefix)
            )
        sums = attention.attend_forward(ledger, heads, rows)
        out = rows.activation_bytes(heads.queries)
        if prefix:
            ledger.free(before)
        added = 0
        if prompt:
            added = additions.prompt_forward(
                ledger, rows, heads.queries, heads.count, prompt, grad=self.grad
            )
            if not self.grad:
                ledger.free(out)
                out = 0
        if heads.rule.gated:
            gate = rows.activation_bytes(heads.queries)
            made, out = made + gate + out, ledger.alloc(gate)
        result = self._project("o")
        if "attention_output" in self.shape.norm_by_role:
            before, result = result, self._norm("attention_output", "output_norm")
            if self.grad and block.reached(*FIRST_HALF):
                saved.output_norm += before
            else:
                ledger.free(before)
        result = self._adapted("attention", result)
        keep = made + sums + out
        saved.prompt = added
        if prompt:
            ledger.free(rows.activation_bytes(heads.queries))  # the sum
        if self.grad and (block.reached(READING) or prefix):
            saved.attended = keep
        elif self.grad and block.saves_input(OUTPUT):
            saved.attended = out
            ledger.free(keep - out)
        else:
            ledger.free(keep)
        if self.grad and block.saves_input(READING):
            saved.reading = reading
        else:
            ledger.free(reading)
        return result

    def _projected(self) -> tuple[int, int]:
        """Return the bytes of queries, keys and values, and those that end when rotated."""
        shape, ledger, rows = self.shape, self.ledger, self.rows
        roles = ("qkv",) if "qkv" in shape.linear_by_role else ("q", "k", "v")
        made = {role: self._project(role) for role in roles}
        heads = Heads.of(shape)
        if heads.rule.gated:
            ledger.transient(made["q"])  # apart from its gate, which stays
            made["q"] //= 2
        if "qkv" in made:
            if not shape.interleaved_qkv:
                return made["qkv"], 0
            apart = ledger.alloc(rows.activation_bytes(heads.all))
            ledger.free(made["qkv"])
            made = {
                "q": rows.activation_bytes(heads.queries),
                "k": rows.activation_bytes(heads.keys),
                "v": apart
                - rows.activation_bytes(heads.queries)
                - rows.activation_bytes(heads.keys),
            }
        normed = [role for role in ("q", "k", "v") if role in shape.norm_by_role]
        for role in normed:
            size = shape.norm_by_role[role].size
            columns = heads.queries if role == "q" else heads.keys
            if not made[role]:  # values that are made of keys
                made[role] = ledger.alloc(rows.activation_bytes(columns))
            weight_bytes = pointwise.norm_forward(ledger, self.block.norm, size, rows, columns)
            if self.grad and self.block.reached(frozenset({role, "qkv"})):
                self.saved.heads_norm += weight_bytes + made[role]
            else:
                ledger.free(weight_bytes + made[role])
        total = sum(made.values())
        if heads.rule.rotary is None:
            return total, 0
        return total, made["q"] + made["k"]

    def _rotated(self, heads: Heads) -> int:
        """Return the bytes of the rotated queries and keys."""
        rotary, size = heads.rule.rotary, self.shape.head_dim
        if rotary is None:
            return 0
        own = (heads.queries, heads.keys) if heads.rule.source is None else (heads.queries,)
        for columns in own:
            rotated = columns // size * rotary.dimensions
            pointwise.rotate_forward(self.ledger, self.rows, rotated, columns)
        return self.rows.activation_bytes(sum(own))

    def _mlp(self) -> int:
        """Return the bytes of the output."""
        reading = self._norm("mlp_input", "middle_norm")
        if self.shape.experts is not None:
            return self._mixture(self.shape.experts, reading)
        return self._leaving(self._dense(), reading, kept=False)

    def _dense(self) -> int:
        """Return the bytes of what an MLP makes of its input."""
        ledger, saved, block, rows = self.ledger, self.saved, self.block, self.rows
        fused = block.linear("gate_up")
        gated = fused is not None or block.linear("gate") is not None
        if fused is not None:
            gates = self._project("gate_up")
        else:
            gates = (self._project("gate") if gated else 0) + self._project("up")
        active = ledger.alloc(rows.activation_bytes(self.shape.ffn_size))
        scaled = "down" in block.footprint.inputs
        kept = self.grad and block.reached(*block.before_mlp, GATES)
        if not kept:
            late = gates // (2 if fused is None else 1) if gated and rows.lazy else 0
            ledger.free(gates - late)
        result = self._project("down")
        if kept:
            saved.gates = gates
        else:
            ledger.free(late)
        if self.grad and (block.saves_input(DOWN) or scaled):
            saved.active = active
        else:
            ledger.free(active)
        return result

    def _mixture(self, rule: Experts, reading: int) -> int:
        """Return the bytes of the experts' output; what they read is kept if anything is."""
        block, kept = self.block, self.grad and self.block.reached(*self.block.before_mlp)
        result, shared = self.rows.activation_bytes(rule.hidden), 0
        if self.shape.shared:
            shared = self._dense()
            if rule.shared_gate is not None:
                self.ledger.transient(result)
        own = Gathered(self.ledger, self.rows, self.shape, rule, block.quantized)
        choices = own.forward()
        self.ledger.transient(result if shared else 0)  # the sum
        if kept:
            self.saved.gates += choices + shared
        else:
            self.ledger.free(choices + shared)
        return self._leaving(result, reading, kept=kept)

    def _leaving(self, result: int, reading: int, *, kept: bool) -> int:
        """Return the bytes of the MLP's output; what it read is freed, or ``kept``."""
        ledger, saved = self.ledger, self.saved
        if "mlp_output" in self.shape.norm_by_role:
            before, result = result, self._norm("mlp_output", "last_norm")
            if self.grad:
                saved.last_norm += before
            else:
                ledger.free(before)
        result = self._adapted("mlp", result)
        if kept or (self.grad and self.block.saves_input(GATES)):
            saved.mlp_reading = reading
        else:
            ledger.free(reading)
        return result

    def _adapted(self, which: Sublayer, out: int) -> int:
        """Return the bytes of a half's output with that of its bottleneck."""
        footprint = self.block.footprint
        if which not in footprint.sublayers:
            return out
        hidden = self.block.hidden_size
        kept = additions.bottleneck_forward(self.ledger, self.rows, hidden, footprint.width)
        read = 0 if footprint.beside else out
        if self.grad:
            self.saved.adapters[which] = kept + read
        self.ledger.free(out - read if self.grad else kept + out)
        return out

    def _project(self, role: str) -> int:
        """Return the bytes of a projection's output."""
        product = self.block.linear(role)
        if product is None:
            return 0
        footprint, scaled = self.block.footprint, 0
        if role in footprint.inputs:
            scaled = self.ledger.alloc(self.rows.activation_bytes(product.inputs))
        low = products.forward(self.ledger, product, self.rows, training=self.training)
        self.ledger.free(scaled)
        out = self.rows.activation_bytes(product.outputs)
        if role in footprint.biases:
            self.ledger.transient(out, product.outputs * self.rows.width)
        if role in footprint.outputs:
            if product.rank:  # scaled by the norms of its rows
                self.ledger.transient(
                    additions.row_norms(self.rows, product.inputs, product.outputs, product.rank)
                )
            self.ledger.alloc(out)
            if self.grad:
                self.saved.scaled[role] = out
            else:
                self.ledger.free(out)
        if self.grad:
            self.saved.low[role] = low
        else:
            self.ledger.free(low)
        return out

    def _norm(self, role: str, slot: str) -> int:
        """Return the bytes of a norm's output, 0 where there is no such norm."""
        norm = self.shape.norm_by_role.get(role)
        if norm is None:
            return 0
        weight_bytes = pointwise.norm_forward(
            self.ledger, self.block.norm, norm.size, self.rows, norm.size
        )
        if self.grad and self.block.reached(*self.block.before(role)):
            setattr(self.saved, slot, weight_bytes)
        else:
            self.ledger.free(weight_bytes)
        return self.rows.activation_bytes(norm.size)
