"""Bytes of a block's backward pass, and what it lets go of, one part after the other."""

from __future__ import annotations

from edgetune.memory import additions, attention, lazy_mixers, per_layer, pointwise, products
from edgetune.memory.attention import Heads
from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.block import ATTEND, FIRST_HALF, GATE, GATES, READING, Block
from edgetune.memory.forward import Saved
from edgetune.memory.gathered import Gathered
from edgetune.memory.ledger import Ledger
from edgetune.network.adaptation import Sublayer
from edgetune.shape import Attention, Experts, GatedDelta, ShortConvolution


class Backward:
    """The backward pass of a block, whose output's gradient is there and stays."""

    def __init__(self, block: Block, ledger: Ledger, saved: Saved) -> None:
        self.block, self.ledger, self.saved = block, ledger, saved
        self.rows, self.shape = block.rows, block.shape
        self.hidden = block.rows.activation_bytes(block.hidden_size)
        self.mlp_peak = 0
        """Of the way through the MLP; the ledger's is that of the way from there on."""

    def run(self) -> None:
        ledger, saved = self.ledger, self.saved
        if self.shape.scalar is not None:
            ledger.transient(self.hidden)
        behind = per_layer.backward(self) if self.shape.per_layer else 0
        grad = self._mlp()
        ledger.free(behind)
        # MLX goes back through both halves of a parallel block at once
        beside = ledger.alloc(saved.gates if self.rows.lazy and self.shape.parallel else 0)
        self.mlp_peak, ledger.peak = ledger.peak, ledger.live
        if not self.block.reached(*FIRST_HALF):
            return
        grad = self._norm("mlp_input", grad, saved.middle_norm)
        ledger.transient(self.hidden)
        ledger.free(saved.middle)
        residual = grad
        grad = self._adapted("attention")
        grad = self._norm("attention_output", grad, saved.output_norm)
        made = self._first_half(grad)
        grad = made
        if self.block.goes_on:
            grad = self._norm("attention_input", made, saved.entry_norm)
        ledger.free(grad + residual + beside)

    def _mlp(self) -> int:
        block, saved = self.block, self.saved
        beside = self._adapted("mlp")
        entry = 0 if block.footprint.beside else beside
        beside -= entry
        entry = self._norm("mlp_output", entry, saved.last_norm)
        if self.shape.experts is not None:
            return self._mixture(self.shape.experts, entry + beside)
        return self._dense(entry, beside)

    def _dense(self, entry: int, beside: int) -> int:
        """Return the bytes of the gradient of what an MLP read, for that of what it made."""
        ledger, saved, rows, block = self.ledger, self.saved, self.rows, self.block
        active = self._project("down")
        ledger.free(entry + saved.active)
        fused = block.linear("gate_up") is not None
        gated = fused or block.linear("gate") is not None
        if not block.reached(*block.before_mlp, GATES):
            ledger.free(active + saved.gates + beside)
            return 0
        if rows.lazy:
            down = block.linear("down")
            ledger.transient(
                pointwise.activation_backward(
                    self.shape.activation, rows, self.shape.ffn_size, gated=gated, fused=fused
                ),
                0 if down is None else down.dense(rows),  # not yet let go of
            )
        if gated:
            grads = pointwise.gated_backward(ledger, rows, self.shape.ffn_size)
        else:
            grads = ledger.alloc(rows.activation_bytes(self.shape.ffn_size))
        ledger.free(active + saved.gates)
        if fused:
            ledger.transient(grads)
            out = self._project("gate_up")
            ledger.free(grads + beside)
        else:
            out = self._project("up")
            ledger.free(beside)  # both gradients become one
            if gated:
                ledger.free(grads // 2)
                again = self._project("gate")
                ledger.free(again + grads // 2)
            else:
                ledger.free(grads)
        ledger.free(saved.mlp_reading)
        return out

    def _mixture(self, rule: Experts, entry: int) -> int:
        """Return the bytes of the gradient of what the experts read."""
        ledger, block, out = self.ledger, self.block, 0
        if block.reached(*block.before_mlp):
            Gathered(ledger, self.rows, self.shape, rule, block.quantized).backward()
            out = ledger.alloc(self.hidden)
        if self.shape.shared:
            ledger.transient(2 * self.hidden)
            again = self._dense(0, 0)
            ledger.free(entry + out)
            return again
        ledger.free(entry + self.saved.gates + self.saved.mlp_reading)
        return out

    def _adapted(self, which: Sublayer) -> int:
        """Return the bytes of the gradient before a bottleneck, 0 where there is none."""
        footprint = self.block.footprint
        if which not in footprint.sublayers:
            return 0
        hidden = self.block.hidden_size
        entry = additions.bottleneck_backward(self.ledger, self.rows, hidden, footprint.width)
        self.ledger.free(self.saved.adapters[which])
        return entry

    def _first_half(self, grad: int) -> int:
        """Return the bytes of the gradient of what the mixer's projections read."""
        mixer = self.shape.mixer
        return self._attention(grad) if isinstance(mixer, Attention) else self._mixed(mixer, grad)

    def _mixed(self, mixer: ShortConvolution | GatedDelta, grad: int) -> int:
        """Return the same of a mixer that is not attention."""
        ledger, saved = self.ledger, self.saved
        out = self._project("conv_out") + self._project("delta_out")
        ledger.free(grad)
        if not self.block.reached(READING, GATE):
            ledger.free(out + saved.attended)
            return 0
        made = 0
        if isinstance(mixer, GatedDelta):
            both = pointwise.gated_backward(ledger, self.rows, mixer.values)
            ledger.free(out)
            made = self._project("delta_z")
            size, columns = mixer.value_dim, mixer.values
            out = pointwise.norm_backward(ledger, self.block.norm, size, self.rows, columns)
            ledger.free(both)
        if not self.block.reached(READING):
            ledger.free(out + saved.attended + saved.reading)
            return made
        grads = lazy_mixers.mixed_backward(ledger, self.rows, mixer)
        ledger.free(out + saved.attended)
        for role in ("conv_in", "delta_a", "delta_b", "delta_qkv"):
            found = self._project(role)
            ledger.free(min(made, found))  # both become one
            made = max(made, found)
        ledger.free(grads + saved.reading)
        return made

    def _attention(self, grad: int) -> int:
        """Return the bytes of the gradient of what the projections read."""
        ledger, saved, rows = self.ledger, self.saved, self.rows
        heads = Heads.of(self.shape)
        out = self._project("o")
        ledger.free(grad)
        out, gate = self._gate(heads, out)
        if rows.lazy:  # whose attention goes back without its output
            done = min(saved.attended, rows.activation_bytes(heads.queries))
            saved.attended -= done
            ledger.free(done)
        prefix, prompt = self.block.footprint.prefix, self.block.footprint.prompt
        if not self.block.reached(READING, ATTEND):
            return 0
        turned = 0
        if prompt:
            turned = additions.prompt_backward(ledger, rows, heads.queries, heads.count, prompt)
            ledger.free(saved.prompt)
        if not self.block.reached(READING) and not prefix:
            ledger.free(out + turned)
            return 0
        if prefix:
            rows = additions.preceded(rows, prefix)
            ledger.alloc(rows.activation_bytes(heads.queries))
            ledger.free(out)
            out = rows.activation_bytes(heads.queries)
        grads = attention.attend_backward(ledger, heads, rows)
        ledger.free(out + saved.attended + turned)
        if not self.block.reached(READING):
            ledger.free(grads)
            return 0
        self._unrotated(heads, rows)
        made = self._read(heads, rows, grads, gate)
        ledger.free(gate + saved.reading)
        return made

    def _unrotated(self, heads: Heads, rows: BatchShape) -> None:
        """Go back through rotations and norms of heads; keys of another block have had theirs."""
        ledger, rotary, keys = self.ledger, heads.rule.rotary, [heads.keys]
        if heads.rule.source is not None:
            keys = []
            ledger.free(2 * rows.activation_bytes(heads.keys))
        if rotary is not None:
            for columns in (*keys, heads.queries):
                turned = columns // self.shape.head_dim * rotary.dimensions
                ledger.free(pointwise.rotate_backward(ledger, rows, turned, columns))
        for role, columns in (("v", heads.keys), ("k", heads.keys), ("q", heads.queries)):
            norm = self.shape.norm_by_role.get(role)
            if norm is not None:
                ledger.free(
                    pointwise.norm_backward(ledger, self.block.norm, norm.size, rows, columns)
                )
        ledger.free(self.saved.heads_norm)

    def _read(self, heads: Heads, rows: BatchShape, grads: int, gate: int) -> int:
        """Return the bytes of the gradient of what the projections read."""
        ledger = self.ledger
        if "qkv" in self.shape.linear_by_role:
            ledger.transient(grads)
            made = self._project("qkv")
            ledger.free(grads)
            return made
        keys = 0 if heads.rule.source is not None else rows.activation_bytes(heads.keys)
        made = self._project("v")
        ledger.free(keys)
        found = self._project("k")
        ledger.free((found if made else 0) + keys)  # both become one
        made = made or found
        ledger.transient(2 * gate)  # together with the queries'
        found = self._project("q")
        ledger.free((found if made else 0) + rows.activation_bytes(heads.queries))
        return made or found

    def _gate(self, heads: Heads, grad: int) -> tuple[int, int]:
        """Return the bytes of the gradients of attention's output and of its gate."""
        if not heads.rule.gated:
            return grad, 0
        both = pointwise.gated_backward(self.ledger, self.rows, heads.queries)
        self.ledger.free(grad)
        return both // 2, both // 2

    def _project(self, role: str) -> int:
        product = self.block.linear(role)
        if product is None:
            return 0
        footprint, scaled = self.block.footprint, 0
        needed = self.block.reached(*self.block.before(role))
        if role in footprint.outputs:
            scaled = additions.scale_backward(self.ledger, self.rows, product.outputs)
            self.ledger.free(self.saved.scaled[role])
            # the gradient of a half's output is the residual's too
            if role not in ("o", "conv_out", "delta_out", "down"):
                self.ledger.free(scaled)  # the caller lets go of the gradient it replaces
                scaled = 0
        entry = products.backward(
            self.ledger, product, self.rows, needed=needed or role in footprint.inputs
        )
        self.ledger.free(self.saved.low.get(role, 0) + scaled)
        if role in footprint.inputs:
            made = additions.scale_backward(self.ledger, self.rows, product.inputs, needed=needed)
            self.ledger.free(entry)
            entry = made
        return entry

    def _norm(self, role: str, grad: int, saved: int) -> int:
        """Return the bytes of the gradient behind a norm; the one before it ends."""
        norm = self.shape.norm_by_role.get(role)
        if norm is None:
            return grad
        made = pointwise.norm_backward(
            self.ledger, self.block.norm, norm.size, self.rows, norm.size
        )
        self.ledger.free(grad + saved)
        return made
