"""Bytes of one block's passes, in the order in which the engine computes them.

A mirror of the torch engine's block: what its functions hold while they run, what autograd keeps
for the backward pass, and what the backward pass lets go of, one part after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgetune.memory import additions, attention, pointwise, products
from edgetune.memory.attention import Heads
from edgetune.memory.ledger import Ledger
from edgetune.memory.products import Product
from edgetune.memory.rows import Rows
from edgetune.methods.base import Half, Ranks, Traces
from edgetune.shape import Attention, Linear, ModelShape
from edgetune.storage import WIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPass:
    """Bytes of one block's passes, over what lives when they begin.

    ``kept`` stays after a forward pass with gradients: what the backward pass needs and the
    output, but not the input, which the block before made. ``forward`` is that pass's peak,
    ``plain`` that of one without gradients (dropout and all), ``inference`` the same in an
    evaluation, ``backward`` that of the backward pass, what was
    kept included.
    """

    kept: int
    forward: int
    plain: int
    inference: int
    backward: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block as an engine computes it, with what a method adds."""

    shape: ModelShape
    rule: Attention
    ranks: Ranks
    traces: Traces
    rows: Rows
    quantized: bool
    goes_on: bool
    """Whether the gradient of the block's input is wanted: not in the first adapted block."""

    def product(self, linear: Linear) -> Product:
        """Return a projection with its update's rank."""
        rank = dict(self.ranks).get(linear.role, 0)
        trained = linear.role in self.traces.matrices
        return Product(
            inputs=linear.inputs,
            outputs=linear.outputs,
            rank=rank,
            quantized=self.quantized and not trained,
            trained=trained,
        )

    def linear(self, role: str) -> Product | None:
        """Return the projection of a role, if the block has it."""
        found = self.shape.linear_by_role.get(role)
        return None if found is None else self.product(found)

    def saves_input(self, roles: frozenset[str]) -> bool:
        """Tell whether the input of any of these projections is kept."""
        return bool(self.adapted & roles)

    @property
    def adapted(self) -> frozenset[str]:
        """Roles of the projections whose gradient reads their input."""
        besides = frozenset(role for role, _ in self.ranks) | self.traces.matrices
        return besides | (GATES if self.traces.halves and self.traces.beside else frozenset())

    @property
    def before_mlp(self) -> tuple[frozenset[str], ...]:
        """Places behind which the MLP comes."""
        return () if self.shape.parallel else FIRST_HALF

    def before(self, role: str) -> tuple[frozenset[str], ...]:
        """Return the places before a norm or a projection."""
        match role:
            case "attention_output":
                return FIRST_HALF
            case "o":
                return READING, ATTEND
            case "mlp_input" | "gate" | "up" | "gate_up":
                return self.before_mlp
            case "down":
                return *self.before_mlp, GATES
            case "mlp_output":
                return *self.before_mlp, GATES, DOWN
            case _:
                return ()

    def reached(self, *parts: frozenset[str]) -> bool:
        """Tell whether gradients are wanted behind these places of the block."""
        trained = frozenset(role for role, _ in self.ranks) | self.traces.places
        return self.goes_on or any(trained & part for part in parts)


READING: frozenset[str] = frozenset({"q", "k", "v", "qkv"})
ATTEND: frozenset[str] = frozenset({"attend"})
OUTPUT: frozenset[str] = frozenset({"o", "attention"})
GATES: frozenset[str] = frozenset({"gate", "up", "gate_up"})
DOWN: frozenset[str] = frozenset({"down"})
FIRST_HALF: tuple[frozenset[str], ...] = (READING, ATTEND, OUTPUT)


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
    exit: int = 0


def block_pass(block: Block) -> BlockPass:
    """Return the bytes of a block's passes."""
    plain, inference, graded = Ledger(), Ledger(), Ledger()
    _Forward(block, plain, grad=False).run()
    _Forward(block, inference, grad=False, training=False).run()
    saved = _Forward(block, graded, grad=True).run()
    back = Ledger(graded.live)
    _Backward(block, back, saved).run()
    return BlockPass(
        kept=graded.live,
        forward=graded.peak,
        plain=plain.peak,
        inference=inference.peak,
        backward=back.peak,
    )


class _Forward:
    """The forward pass of a block; without ``grad`` nothing but the output stays."""

    def __init__(self, block: Block, ledger: Ledger, *, grad: bool, training: bool = True) -> None:
        self.block, self.ledger, self.grad, self.training = block, ledger, grad, training
        self.rows, self.shape = block.rows, block.shape
        self.hidden = block.rows.numbers(block.shape.hidden_size)
        self.saved = Saved()

    def run(self) -> Saved:
        attended = self._attention()
        middle = self.ledger.take(self.hidden)
        out = self._mlp()
        self.saved.exit = self.ledger.take(self.hidden)
        self.ledger.drop(attended + out)
        if self.grad and self._middle_is_saved():
            self.saved.middle = middle
        else:
            self.ledger.drop(middle)
        return self.saved

    def _middle_is_saved(self) -> bool:
        """Tell whether what the second half reads is kept: a layer norm keeps a wide copy."""
        if self.shape.parallel:
            return False
        if "mlp_input" not in self.shape.norm_by_role:
            return self.block.saves_input(GATES)
        copied = self.shape.norm.kind == "layer" and self.rows.width != WIDE
        return not copied and self.block.reached(*self.block.before_mlp)

    def _attention(self) -> int:
        """Return the bytes of the output, which stays until the block is done."""
        ledger, saved, block, rows = self.ledger, self.saved, self.block, self.rows
        reading = self._norm("attention_input", "entry_norm")
        original, lent = self._projected()
        heads = Heads.of(self.shape, block.rule)
        turned = self._rotated(heads)
        ledger.drop(lent)
        made = original - lent + turned
        prefix, prompt = block.traces.prefix, block.traces.prompt
        if prefix:
            ledger.passing(prefix * heads.queries * rows.width)
            before, rows = made, additions.preceded(rows, prefix)
            made = ledger.take(rows.numbers(heads.all) + additions.prefix_bytes(heads.keys, prefix))
        sums = attention.attend_forward(ledger, heads, rows)
        out = rows.numbers(heads.queries)
        if prefix:
            ledger.drop(before)
        added = 0
        if prompt:
            added = additions.prompt_forward(
                ledger, rows, heads.queries, heads.count, prompt, grad=self.grad
            )
            if not self.grad:
                ledger.drop(out)
                out = 0
        result = self._project("o")
        if "attention_output" in self.shape.norm_by_role:
            before, result = result, self._norm("attention_output", "output_norm")
            if self.grad and block.reached(*FIRST_HALF):
                saved.output_norm += before
            else:
                ledger.drop(before)
        result = self._adapted("attention", result)
        keep = made + sums + out
        saved.prompt = added
        if prompt:
            ledger.drop(rows.numbers(heads.queries))  # the sum
        if self.grad and (block.reached(READING) or prefix):
            saved.attended = keep
        elif self.grad and block.saves_input(OUTPUT):
            saved.attended = out
            ledger.drop(keep - out)
        else:
            ledger.drop(keep)
        if self.grad and block.saves_input(READING):
            saved.reading = reading
        else:
            ledger.drop(reading)
        return result

    def _projected(self) -> tuple[int, int]:
        """Return the bytes of queries, keys and values, and those that end when rotated."""
        shape, ledger, rows = self.shape, self.ledger, self.rows
        roles = ("qkv",) if "qkv" in shape.linear_by_role else ("q", "k", "v")
        made = {role: self._project(role) for role in roles}
        heads = Heads.of(shape, self.block.rule)
        if "qkv" in made:
            if not shape.interleaved_qkv:
                return made["qkv"], 0
            apart = ledger.take(rows.numbers(heads.all))
            ledger.drop(made["qkv"])
            made = {
                "q": rows.numbers(heads.queries),
                "k": rows.numbers(heads.keys),
                "v": apart - rows.numbers(heads.queries) - rows.numbers(heads.keys),
            }
        normed = [role for role in ("q", "k") if role in shape.norm_by_role]
        for role in normed:
            size = shape.norm_by_role[role].size
            columns = heads.queries if role == "q" else heads.keys
            gain = pointwise.norm_forward(ledger, shape.norm, size, rows, columns)
            if self.grad and self.block.reached(frozenset({role, "qkv"})):
                self.saved.heads_norm += gain + made[role]
            else:
                ledger.drop(gain + made[role])
        total = sum(made.values())
        if self.block.rule.rotary is None:
            return total, 0
        return total, made["q"] + made["k"]

    def _rotated(self, heads: Heads) -> int:
        """Return the bytes of the rotated queries and keys."""
        rotary, size = self.block.rule.rotary, self.shape.head_dim
        if rotary is None:
            return 0
        for columns in (heads.queries, heads.keys):
            turned = columns // size * rotary.dimensions
            pointwise.rotate_forward(self.ledger, self.rows, turned, columns)
        return self.rows.numbers(heads.queries + heads.keys)

    def _mlp(self) -> int:
        """Return the bytes of the output."""
        ledger, saved, block, rows = self.ledger, self.saved, self.block, self.rows
        reading = self._norm("mlp_input", "middle_norm")
        fused = block.linear("gate_up")
        gated = fused is not None or block.linear("gate") is not None
        if fused is not None:
            gates = self._project("gate_up")
        else:
            gates = (self._project("gate") if gated else 0) + self._project("up")
        active = ledger.take(rows.numbers(self.shape.ffn_size))
        scaled = "down" in block.traces.inputs
        kept = self.grad and block.reached(*block.before_mlp, GATES)
        if not kept:
            late = gates // 2 if gated and fused is None else (gates if gated else 0)
            ledger.drop(gates - late)
        result = self._project("down")
        if kept:
            saved.gates = gates
        else:
            ledger.drop(late)
        if self.grad and (block.saves_input(DOWN) or scaled):
            saved.active = active
        else:
            ledger.drop(active)
        if "mlp_output" in self.shape.norm_by_role:
            before, result = result, self._norm("mlp_output", "last_norm")
            if self.grad:
                saved.last_norm += before
            else:
                ledger.drop(before)
        result = self._adapted("mlp", result)
        if self.grad and block.saves_input(GATES):
            saved.mlp_reading = reading
        else:
            ledger.drop(reading)
        return result

    def _adapted(self, half: Half, out: int) -> int:
        """Return the bytes of a half's output with that of its bottleneck."""
        traces = self.block.traces
        if half not in traces.halves:
            return out
        hidden = self.shape.hidden_size
        kept = additions.bottleneck_forward(self.ledger, self.rows, hidden, traces.width)
        read = 0 if traces.beside else out
        if self.grad:
            self.saved.adapters[half] = kept + read
        self.ledger.drop(out - read if self.grad else kept + out)
        return out

    def _project(self, role: str) -> int:
        """Return the bytes of a projection's output."""
        product = self.block.linear(role)
        if product is None:
            return 0
        traces, scaled = self.block.traces, 0
        if role in traces.inputs:
            scaled = self.ledger.take(self.rows.numbers(product.inputs))
        low = products.forward(self.ledger, product, self.rows, training=self.training)
        self.ledger.drop(scaled)
        out = self.rows.numbers(product.outputs)
        if role in traces.biases:
            self.ledger.passing(out, product.outputs * self.rows.width)
        if role in traces.outputs:
            self.ledger.take(out)
            if self.grad:
                self.saved.scaled[role] = out
            else:
                self.ledger.drop(out)
        if self.grad:
            self.saved.low[role] = low
        else:
            self.ledger.drop(low)
        return out

    def _norm(self, role: str, slot: str) -> int:
        """Return the bytes of a norm's output, 0 where there is no such norm."""
        norm = self.shape.norm_by_role.get(role)
        if norm is None:
            return 0
        gain = pointwise.norm_forward(self.ledger, self.shape.norm, norm.size, self.rows, norm.size)
        if self.grad and self.block.reached(*self.block.before(role)):
            setattr(self.saved, slot, gain)
        else:
            self.ledger.drop(gain)
        return self.rows.numbers(norm.size)


class _Backward:
    """The backward pass of a block, whose output's gradient is there and stays."""

    def __init__(self, block: Block, ledger: Ledger, saved: Saved) -> None:
        self.block, self.ledger, self.saved = block, ledger, saved
        self.rows, self.shape = block.rows, block.shape
        self.hidden = block.rows.numbers(block.shape.hidden_size)

    def run(self) -> None:
        ledger, saved = self.ledger, self.saved
        grad = self._mlp()
        if not self.block.reached(*FIRST_HALF):
            return
        grad = self._norm("mlp_input", grad, saved.middle_norm)
        ledger.passing(self.hidden)
        ledger.drop(saved.middle)
        residual = grad
        grad = self._adapted("attention")
        grad = self._norm("attention_output", grad, saved.output_norm)
        made = self._attention(grad)
        grad = made
        if self.block.goes_on:
            grad = self._norm("attention_input", made, saved.entry_norm)
        ledger.drop(grad + residual)

    def _mlp(self) -> int:
        ledger, saved, rows, block = self.ledger, self.saved, self.rows, self.block
        beside = self._adapted("mlp")
        entry = 0 if block.traces.beside else beside
        beside -= entry
        entry = self._norm("mlp_output", entry, saved.last_norm)
        active = self._project("down")
        ledger.drop(entry + saved.active)
        gated = block.linear("gate_up") is not None or block.linear("gate") is not None
        if not block.reached(*block.before_mlp, GATES):
            ledger.drop(active + saved.gates + beside)
            return 0
        if gated:
            grads = pointwise.gated_backward(ledger, rows, self.shape.ffn_size)
        else:
            grads = ledger.take(rows.numbers(self.shape.ffn_size))
        ledger.drop(active + saved.gates)
        if block.linear("gate_up") is not None:
            ledger.passing(grads)
            out = self._project("gate_up")
            ledger.drop(grads + beside)
        else:
            out = self._project("up")
            ledger.drop(beside)  # both gradients become one
            if gated:
                ledger.drop(grads // 2)
                again = self._project("gate")
                ledger.drop(again + grads // 2)
            else:
                ledger.drop(grads)
        ledger.drop(saved.mlp_reading)
        return out

    def _adapted(self, half: Half) -> int:
        """Return the bytes of the gradient before a bottleneck, 0 where there is none."""
        traces = self.block.traces
        if half not in traces.halves:
            return 0
        hidden = self.shape.hidden_size
        entry = additions.bottleneck_backward(self.ledger, self.rows, hidden, traces.width)
        self.ledger.drop(self.saved.adapters[half])
        return entry

    def _attention(self, grad: int) -> int:
        """Return the bytes of the gradient of what the projections read."""
        ledger, saved, rows = self.ledger, self.saved, self.rows
        heads = Heads.of(self.shape, self.block.rule)
        out = self._project("o")
        ledger.drop(grad)
        prefix, prompt = self.block.traces.prefix, self.block.traces.prompt
        if not self.block.reached(READING, ATTEND):
            return 0
        turned = 0
        if prompt:
            turned = additions.prompt_backward(ledger, rows, heads.queries, heads.count, prompt)
            ledger.drop(saved.prompt)
        if not self.block.reached(READING) and not prefix:
            ledger.drop(out + turned)
            return 0
        if prefix:
            rows = additions.preceded(rows, prefix)
            ledger.take(rows.numbers(heads.queries))
            ledger.drop(out)
            out = rows.numbers(heads.queries)
        grads = attention.attend_backward(ledger, heads, rows)
        ledger.drop(out + saved.attended + turned)
        if not self.block.reached(READING):
            ledger.drop(grads)
            return 0
        rotary = self.block.rule.rotary
        if rotary is not None:
            for columns in (heads.keys, heads.queries):
                turned = columns // self.shape.head_dim * rotary.dimensions
                ledger.drop(pointwise.rotate_backward(ledger, rows, turned, columns))
        for role, columns in (("k", heads.keys), ("q", heads.queries)):
            norm = self.shape.norm_by_role.get(role)
            if norm is not None:
                ledger.drop(
                    pointwise.norm_backward(ledger, self.shape.norm, norm.size, rows, columns)
                )
        ledger.drop(saved.heads_norm)
        if "qkv" in self.shape.linear_by_role:
            ledger.passing(grads)
            made = self._project("qkv")
            ledger.drop(grads)
        else:
            made = self._project("v")
            ledger.drop(rows.numbers(heads.keys))
            ledger.drop(self._project("k") + rows.numbers(heads.keys))
            ledger.drop(self._project("q") + rows.numbers(heads.queries))
        ledger.drop(saved.reading)
        return made

    def _project(self, role: str) -> int:
        product = self.block.linear(role)
        if product is None:
            return 0
        traces, scaled = self.block.traces, 0
        needed = self.block.reached(*self.block.before(role))
        if role in traces.outputs:
            scaled = additions.scale_backward(self.ledger, self.rows, product.outputs)
            self.ledger.drop(self.saved.scaled[role])
            if role not in ("o", "down"):  # whose output's gradient is the residual's too
                self.ledger.drop(scaled)  # the caller lets go of the gradient it replaces
                scaled = 0
        entry = products.backward(
            self.ledger, product, self.rows, needed=needed or role in traces.inputs
        )
        self.ledger.drop(self.saved.low.get(role, 0) + scaled)
        if role in traces.inputs:
            made = additions.scale_backward(self.ledger, self.rows, product.inputs, needed=needed)
            self.ledger.drop(entry)
            entry = made
        return entry

    def _norm(self, role: str, grad: int, saved: int) -> int:
        """Return the bytes of the gradient behind a norm; the one before it ends."""
        norm = self.shape.norm_by_role.get(role)
        if norm is None:
            return grad
        made = pointwise.norm_backward(
            self.ledger, self.shape.norm, norm.size, self.rows, norm.size
        )
        self.ledger.drop(grad + saved)
        return made
