"""How near does a step come to the rate of bare products, and where does the rest of it go?

    python tools/bench/step_rate.py /tmp/rate --tokens 512 2048

Two blocks of a profile's shape with random weights (NF4, rank 16 on all projections, everything
checkpointed, 8-bit AdamW; a vocabulary as much smaller as the model is) take steps in this process.
All products that a step executes are listed: those of blocks, adapters and loss, recomputation and
attention included. Before each step every one of them is timed alone, in bfloat16, into memory that
is there. The share is the seconds that the listed products take alone, over those of the step: both
were measured within a second of each other, so a busy machine hits both. On a very busy one,
``--processor`` counts processor seconds; with ``OMP_NUM_THREADS=1`` these hardly depend on others.
``--profile`` prints what the step's operations took, by torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from models import write_model
from peer_edgetune import plan_for
from peer_work import Work
from peers import commit, machine
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from edgetune.backend import Session
from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.model import LocalModel
from edgetune.profile import model_profile
from edgetune.shape import ModelShape
from edgetune.workflows.opening import open_session

FIRST = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}
"""Products, and which argument is the first of their two matrices."""

Clock = Callable[[], float]

LEAST = 0.02
"""Seconds for which a bare product is repeated, twice at least."""


@dataclass(frozen=True, slots=True)
class Product:
    """``batch`` products (rows, inner) x (inner, columns); a turned matrix lies transposed."""

    batch: int
    rows: int
    inner: int
    columns: int
    first_turned: bool
    second_turned: bool

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> Product:
        """Return the product of two tensors."""
        batch = first.shape[0] if first.dim() == 3 else 1
        turned = (x.stride(-1) != 1 and x.shape[-1] > 1 for x in (first, second))
        return cls(batch, *first.shape[-2:], second.shape[-1], *turned)

    @property
    def flops(self) -> int:
        """Operations of all of them."""
        return 2 * self.batch * self.rows * self.inner * self.columns

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return two random bfloat16 matrices, and where their product goes."""
        first = _matrix((self.batch, self.rows, self.inner), turned=self.first_turned)
        second = _matrix((self.batch, self.inner, self.columns), turned=self.second_turned)
        return first, second, torch.empty(self.batch, self.rows, self.columns, dtype=first.dtype)

    def seconds(self, clock: Clock) -> float:
        """Return the median time of the bare product."""
        first, second, out = self.operands()
        if self.batch == 1:
            first, second, out = first[0], second[0], out[0]
        multiply, taken = torch.mm if self.batch == 1 else torch.bmm, []
        multiply(first, second, out=out)  # makes the kernel
        while len(taken) < 2 or sum(taken) < LEAST:
            begun = clock()
            multiply(first, second, out=out)
            taken.append(clock() - begun)
        return median(taken)


class Products(TorchDispatchMode):
    """Lists the products that are executed while it is entered, and how often each is."""

    def __init__(self) -> None:
        """List nothing yet."""
        super().__init__()
        self.times: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a product, and do what was asked for."""
        name = func.overloadpacket.__name__
        if name in FIRST:
            at = FIRST[name]
            self.times[Product.of(args[at], args[at + 1])] += 1
        return func(*args, **(kwargs or {}))

    def attention(self, shape: ModelShape, tokens: int) -> None:
        """Note what kernels of attention multiply: nothing of it is dispatched.

        Scores are made forward, again, and with the weights' gradient on the way back; the products
        with values and the gradients of queries, keys and values are as many. Half is masked.
        """
        for block in shape.blocks:
            size, batch = block.head_dim, block.heads // 2
            self.times[Product(batch, tokens, size, tokens, False, True)] += 4
            self.times[Product(batch, tokens, tokens, size, False, False)] += 5


def products_of(session: Session, work: Work, shape: ModelShape) -> Counter[Product]:
    """Return the products of a step, and how often each is executed."""
    with Products() as found:
        step(session, _batch(work), work)
    found.attention(shape, work.tokens)
    return found.times


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What steps of one length took."""

    tokens: int
    threads: int
    flops: int
    step_seconds: float
    """The median of all rounds, like those that follow."""
    bare_seconds: float
    share: float
    share_spread: tuple[float, float]


def measure(
    session: Session, work: Work, products: Counter[Product], rounds: int, clock: Clock
) -> Rate:
    """Return the share of a step's time in which bare products would be done."""
    batch, bare, steps = _batch(work), [], []
    for _ in range(rounds):
        bare.append(sum(times * one.seconds(clock) for one, times in products.items()))
        steps.append(step(session, batch, work, clock))
    shares = [one / whole for one, whole in zip(bare, steps, strict=True)]
    return Rate(
        tokens=work.tokens,
        threads=torch.get_num_threads(),
        flops=sum(times * one.flops for one, times in products.items()),
        step_seconds=median(steps),
        bare_seconds=median(bare),
        share=median(shares),
        share_spread=(min(shares), max(shares)),
    )


def listed(products: Counter[Product], clock: Clock) -> Iterator[str]:
    """Yield the products of a step with their bare rates, those that take longest first."""
    each = [(times * one.seconds(clock), times, one) for one, times in products.items()]
    for seconds, times, one in sorted(each, key=lambda x: -x[0]):
        rate = times * one.flops / seconds / 1e9
        marks = "".join("t" if turned else "n" for turned in (one.first_turned, one.second_turned))
        size = f"{one.batch} x ({one.rows}, {one.inner}) x ({one.inner}, {one.columns}) {marks}"
        yield f"  {seconds * 1000:9.1f} ms {times:6} {rate:7.1f} GFLOP/s {size}"


def step(
    session: Session, batch: MicroBatch, work: Work, clock: Clock = time.perf_counter
) -> float:
    """Take a step and return its seconds."""
    begun = clock()
    session.step([batch], loss_tokens=work.tokens - 1, learning_rate=work.learning_rate)
    return clock() - begun


def profiled(session: Session, work: Work, lines: int) -> Iterator[str]:
    """Yield what the operations of a step took themselves, the largest first."""
    batch = _batch(work)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step(session, batch, work)
    events = sorted(profiler.key_averages(), key=lambda x: -x.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    for event in events[:lines]:
        taken = event.self_cpu_time_total
        yield f"  {taken / whole:6.1%} {taken / 1000:9.1f} ms {event.count:6} {event.key}"


def written(folder: Path, profile: str, layers: int) -> LocalModel:
    """Return the model in the folder, written if it is not there yet."""
    path = folder / f"{profile}-{layers}"
    if not (path / "model.safetensors.index.json").exists():
        config = model_profile(profile).config
        share = layers / config["num_hidden_layers"]
        vocabulary = max(256, round(config["vocab_size"] * share / 64) * 64)
        write_model(profile, path, {"num_hidden_layers": layers, "vocab_size": vocabulary})
    return LocalModel.open(path)


def _batch(work: Work) -> MicroBatch:
    (row,) = work.rows()
    targets = np.append(row[1:], IGNORED).astype(np.int32)
    return MicroBatch(tokens=row[None], targets=targets[None], documents=((work.tokens,),))


def _matrix(shape: tuple[int, int, int], *, turned: bool) -> Tensor:
    batch, rows, columns = shape
    if turned:
        return torch.randn(batch, columns, rows, dtype=torch.bfloat16).transpose(1, 2)
    return torch.randn(batch, rows, columns, dtype=torch.bfloat16)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the model is, or is written")
    parser.add_argument("--profile-name", dest="name", default="tinyllama-1.1b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", type=int, default=0, metavar="LINES")
    parser.add_argument("--processor", action="store_true", help="count processor seconds")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    clock = time.process_time if given.processor else time.perf_counter
    model = written(given.folder, given.name, given.layers)
    for tokens in given.tokens:
        work = Work(
            model=str(model.folder), tokens=tokens, steps=1, vocabulary=model.shape.vocabulary
        )
        session = open_session(plan_for(work, model, {"embedding": "disk"}), model)
        step(session, _batch(work), work)  # what is made once is there from now on
        products = products_of(session, work, model.shape)
        rate = measure(session, work, products, given.rounds, clock)
        print(
            f"{tokens:6} tokens: {rate.share:.1%} of the rate of bare products "
            f"({rate.share_spread[0]:.1%} to {rate.share_spread[1]:.1%}); "
            f"{rate.flops / 1e9:.0f} GFLOP, bare {rate.bare_seconds:.3f} s, "
            f"step {rate.step_seconds:.3f} s, {rate.threads} threads"
        )
        if given.profile:
            print(*listed(products, clock), *profiled(session, work, given.profile), sep="\n")
        session.close()
        if given.output:
            line = {"machine": machine(), "commit": commit(), "model": given.name}
            with given.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "layers": given.layers, **asdict(rate)}) + "\n")


if __name__ == "__main__":
    main()
