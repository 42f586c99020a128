"""What all areas share: seeded cases, a watchdog, the command line in this process.

A case is made by (area, seed, number) alone, so each can be run again by itself:

    python -m tests.fuzz sweeps --seed 0 --only 123
"""

from __future__ import annotations

import faulthandler
import io
import random
import resource
import signal
import sys
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.cli.common import EXIT_STOPPED
from orchestrator.cli.main import main

MOST_CPU_S = 20
MOST_WALL_S = 180
"""A machine that does other things as well may need this long for 20 seconds of its own work."""
MOST_MEMORY = 3 << 30
"""What a case may take beside what is in use: a file of kilobytes must not fill a machine."""


class Fault(Exception):
    """The product did what it never must."""


class Hang(BaseException):
    """A case took too long; no `except Exception` of the product's stops it."""


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


def resurge(*arguments: str) -> Answer:
    """A command, as the terminal would see it.

    Raises:
        Fault: a traceback, an exit code that the help does not name, or bad input without a reason.
    """
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["resurge", *arguments]
    code: object = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    answer = Answer(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())
    command = " ".join(arguments)
    if "Traceback (most recent call last)" in answer.out + answer.err:
        raise Fault(f"`{command}` ends in a traceback\n{answer.err or answer.out}")
    if code == EXIT_STOPPED:  # somebody stops us, and `run` heard it first
        raise KeyboardInterrupt
    if code not in (None, 0, 1, 2):
        raise Fault(f"`{command}` ends with {code!r}\n{answer.err}")
    if code == 2 and not answer.err.strip():
        raise Fault(f"`{command}` refuses and does not say why")
    return answer


class Area(ABC):
    """A kind of input that is damaged, and what must come of it."""

    name: str
    full: int
    """How many cases `make fuzz` runs."""
    quick: int
    """How many `make test` runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outcomes: Counter[str] = Counter()
        self.said = ""

    @abstractmethod
    def case(self, rng: random.Random) -> str:
        """Damage something and look at what comes of it; the outcome in a word or two.

        Raises:
            Fault: what it is.
        """

    def say(self, text: str) -> None:
        """What a case did, to be shown if it fails."""
        self.said = text


@dataclass
class Report:
    """What became of an area's cases."""

    area: str
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Counts, as they are printed."""
        counts = ", ".join(f"{n:,} {what}" for what, n in sorted(self.outcomes.items()))
        total = sum(self.outcomes.values()) + len(self.failures)
        return f"fuzz {self.area} (seed {self.seed}): {total:,} cases: {counts}" + (
            f"; {len(self.failures):,} FAILED" if self.failures else ""
        )


def run(
    area: Area, seed: int, numbers: Sequence[int], tell: Callable[[str], None] = lambda text: None
) -> Report:
    """Run those cases; what fails is told with how to run it again."""
    report = Report(area.name, seed)
    for number in numbers:
        rng = random.Random(f"{area.name} {seed} {number}")
        area.say("")
        try:
            with limits():
                outcome = area.case(rng)
        except Fault as fault:
            why = str(fault)
        except KeyboardInterrupt:
            raise
        except BaseException:  # also a Hang, and what Rust calls a panic
            why = traceback.format_exc()
        else:
            report.outcomes[outcome] += 1
            continue
        again = f"python -m tests.fuzz {area.name} --seed {seed} --only {number}"
        report.failures.append(f"{again}\n{area.said}\n{why}")
        tell(report.failures[-1])
    return report


@contextmanager
def limits() -> Iterator[None]:
    """Time and memory. What C code does not let be interrupted ends the process with its stacks."""

    def stop(number: int, _frame: object) -> None:
        raise Hang(f"no end after {MOST_CPU_S} s of work or {MOST_WALL_S} s")

    handlers = {s: signal.signal(s, stop) for s in (signal.SIGPROF, signal.SIGALRM)}
    memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_used_bytes() + MOST_MEMORY, memory[1]))
    faulthandler.dump_traceback_later(2 * MOST_WALL_S, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
    signal.setitimer(signal.ITIMER_REAL, MOST_WALL_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, memory)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _used_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes with something wrong: cut, flipped, overwritten, doubled, or moved."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        size = len(data)
        at, length = rng.randrange(size + 1), min(size, rng.choice((1, 2, 4, 16, 64, 1024)))
        match rng.choice(("cut", "flip", "overwrite", "insert", "delete", "double", "zero", "end")):
            case "cut":
                del data[at:]
            case "flip" if size:
                data[at % size] ^= 1 << rng.randrange(8)
            case "overwrite":
                data[at : at + length] = rng.randbytes(length)
            case "insert":
                data[at:at] = rng.randbytes(length)
            case "delete":
                del data[at : at + length]
            case "double":
                data[at:at] = data[at : at + length]
            case "zero":
                data[at : at + length] = bytes(length)
            case "end":
                data += rng.choice((b"\n", b"\0", b"garbage", bytes(data[:64])))
    return bytes(data)
