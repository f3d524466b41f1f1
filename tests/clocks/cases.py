"""Arrays of random and edge values for property tests, and how many values the tests have held against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from random import Random

from hypothesis import settings
from hypothesis import strategies as st

PERIOD = 1 << 64
EDGES = [e + d for e in (0, 1 << 32, 1 << 62, 1 << 63, PERIOD) for d in (-2, -1, 0, 1, 2) if 0 <= e + d < PERIOD]


def u64(random: Random) -> int:
    """An edge, a number of any length, or one a little off an edge."""
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(EDGES)
    if kind == 1:
        return (random.choice(EDGES) + random.randrange(-1000, 1000)) % PERIOD
    return random.getrandbits(random.randrange(1, 65))


def u64s(random: Random, count: int) -> list[int]:
    """A column of them."""
    return [u64(random) for _ in range(count)]


def signed(random: Random) -> int:
    """A signed number of any length, or at an open end."""
    return max(-PERIOD // 2, min(PERIOD // 2 - 1, random.choice((1, -1)) * u64(random)))


randoms = st.integers(0, 2**32 - 1).map(Random)


@st.composite
def scales(draw: st.DrawFn) -> tuple[int, int]:
    """(ratio, frac_bits): Intel's and AMD's more often than others; near 1, below, above, and at the edges."""
    frac = draw(st.sampled_from([48, 32, 48, 32, 0, 1, 31, 33, 62, 63]) | st.integers(0, 63))
    one = 1 << frac
    ratio = draw(
        st.integers(max(one - 3, 1), min(one + 3, PERIOD - 1))
        | st.integers(max(one // 10, 1), min(one * 10, PERIOD - 1))
        | st.integers(1, PERIOD - 1)
        | st.sampled_from([1, 2, 3, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, 1 << 63, PERIOD - 1])
        | st.integers(0, 63).map(lambda bits: 1 << bits)
    )
    return ratio, frac


@dataclass
class Tally:
    """How many cases each property promises to check, and has checked in this process."""

    promised: dict[str, int] = field(default_factory=dict)
    checked: int = 0

    def property(self, examples: int, each: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """A property of ``examples`` examples with ``each`` values; fails where fewer were checked in the end."""

        def wrap(test: Callable[..., None]) -> Callable[..., None]:
            self.promised[test.__name__] = examples * each
            drawn = settings(max_examples=examples)(test)

            @wraps(test)
            def run() -> None:
                self.checked = 0
                drawn()
                assert self.checked >= examples * each

            # pytest would take the arguments that Hypothesis draws for fixtures
            del run.__wrapped__
            return run

        return wrap
