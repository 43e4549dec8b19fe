"""The attacks: kills at random moments and writes, every signal, full disks, flipped bits."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass
from pathlib import Path

from chaos_runs.children import Child

IGNORED = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGPIPE", "SIGXFSZ", "SIGTTIN", "SIGTTOU"}
SIGNALS = sorted(x for x in signal.Signals if x.name not in IGNORED)
KINDS = ("time", "write", "write", "signal", "disk", "bit")
STOPPED = {0, 2, 6, 130}
"""Exit codes of a command that was attacked and told so: done, nothing yet, saved, stopped."""


@dataclass(frozen=True)
class Attack:
    """A kind of attack and what it does to a child; a bit is flipped after the child is dead."""

    kind: str
    child: Child

    def allows(self, code: int) -> bool:
        """Return whether a child may end like this."""
        return code in STOPPED or -code == self.child.number


def draw(random_: random.Random, seconds: float, writes: int) -> Attack:
    """Return an attack on a command of some seconds and writes."""
    kind = random_.choice(KINDS)
    kill = int(signal.SIGKILL)
    moment = random_.uniform(0, seconds)
    if kind == "disk":
        return Attack(kind, Child(room=int(10 ** random_.uniform(1, 6))))
    if kind == "signal":
        return Attack(kind, Child(int(random_.choice(SIGNALS)), after=moment))
    if kind == "time":
        return Attack(kind, Child(kill, after=moment))
    return Attack(kind, Child(kill, write=random_.randint(1, writes)))


def flip(random_: random.Random, output: Path) -> str | None:
    """Flip a bit of the newest checkpoint; return where, None if another has to be there first."""
    found = sorted(output.glob("checkpoints/step-*[0-9]"))
    if len(found) < 2:
        return None
    file = random_.choice(sorted(path for path in found[-1].iterdir() if path.is_file()))
    content = bytearray(file.read_bytes())
    bit = random_.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return f"bit {bit} of {file.parent.name}/{file.name}"
