"""What a world is made of: the flags of ``counterpoint simulate``. No numpy, as the command's help reads it."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any, Literal

from counterpoint.errors import UsageError

NS_CLOCKS = ("mono_raw", "mono", "local", "boot")
RAW_CLOCK = {"x86": "x86-tsc", "arm64": "mono_raw"}
"""The clock of each architecture that relates host and guest exactly."""

DEFAULT_KHZ = {"x86": 2_400_000, "arm64": 24_000}
MAX_CPUS = 1024
MIN_KHZ = 1000
PVCLOCK_KHZ = 1_000_000
MAX_EVENTS = 1 << 30


def _choices(kind: Any) -> tuple[str, ...]:  # noqa: ANN401 (a Literal)
    return tuple(kind.__args__)


Arch = Literal["x86", "arm64"]
Latency = Literal["metal", "emulated"]
TimeShiftKind = Literal["none", "true", "wrong", "nested", "zero"]
Compression = Literal["none", "zlib", "zstd"]
CHOICES: dict[str, tuple[str, ...]] = {
    "arch": _choices(Arch),
    "latency": _choices(Latency),
    "time_shift": _choices(TimeShiftKind),
    "compression": _choices(Compression),
    "clock": ("", "x86-tsc", *NS_CLOCKS),
    "guest_clock": ("", "x86-tsc", *NS_CLOCKS),
}


@dataclass(frozen=True)
class WorldOptions:
    """A world to make. Times in host microseconds or counts; rates in kHz; a 0 or "" is the usual."""

    seed: int = 0
    arch: Arch = "x86"
    vms: int = 1
    vcpus: int = 2
    cpus: int = 4
    events: int = 20_000
    clock: str = ""
    guest_clock: str = ""
    khz: int = 0
    start: int | None = None
    offset: int | None = None
    differ: int = 0
    pauses: int = 0
    restores: int = 0
    writes: int = 0
    hotplug: bool = False
    silent: bool = False
    probes: bool = False
    pvclock: bool = False
    guest_khz: int = 0
    frac: int = 48
    drift_ppm: float = 0.0
    slews: int = 0
    steps: int = 0
    nested: int = 0
    nested_khz: int = 0
    nested_events: bool = False
    migrate: bool = False
    returns: int = 0
    khz_b: int = 0
    lose: int = 0
    lose_guest: int = 0
    uncounted: bool = False
    unrecorded_cpus: int = 0
    late_start: float = 0.0
    early_end: float = 0.0
    fast_exits: float = 0.5
    unlogged: float = 0.0
    latency: Latency = "metal"
    decoys: int = 0
    kvm_events: bool = True
    timers: bool = True
    vtimers: bool = False
    time_shift: TimeShiftKind = "none"
    error: int = 1_000_000
    guest_option: bool = False
    tsc2nsec: bool = False
    cmdlines: bool = True
    uname: bool = True
    version: int = 7
    compression: Compression = "zstd"

    def __post_init__(self) -> None:
        """Refuse what no world can be (UsageError)."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} {getattr(self, name)!r} is none of {', '.join(c for c in choices if c)}")
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"{name} {value} is not in {low}..{high}")
        for name in ("khz", "khz_b", "guest_khz", "nested_khz"):
            if 0 < getattr(self, name) < MIN_KHZ:
                raise UsageError(f"{name} {getattr(self, name)} is below {MIN_KHZ}")
        if self.khz_b and not self.host_khz // 4 <= self.khz_b <= self.host_khz * 4:
            raise UsageError(f"khz_b {self.khz_b}: hosts whose rates are more than 4 times apart are not made")
        if "x86-tsc" in (self.clock, self.guest_clock) and self.arch == "arm64":
            raise UsageError("arm64 has no x86-tsc clock")
        if self.arch == "arm64" and (self.guest_khz or self.nested_khz):
            raise UsageError("arm64 does not scale a guest's counter")
        if self.arch == "arm64" and self.writes:
            raise UsageError("a guest cannot write arm64's counter")
        if self.arch == "x86" and self.probes:
            raise UsageError("probes log CNTVOFF, which only arm64 has")
        if self.pvclock and (self.arch != "x86" or self.guests_clock != "local"):
            raise UsageError("pvclock: x86 guests whose trace clock is local have it from kvm-clock")
        if self.pvclock and (self.guest_khz or self.host_khz) <= PVCLOCK_KHZ:
            raise UsageError(f"pvclock is for guests above {PVCLOCK_KHZ} kHz")
        if self.vtimers and (self.migrate or self.steps):
            raise UsageError("vtimers: not with a second host, nor where a CLOCK_MONOTONIC steps, as none does")
        if self.returns and not self.migrate:
            raise UsageError("returns: a VM that does not migrate does not come back")
        if self.migrate and self.nested:
            raise UsageError("a VM that runs nested guests is not migrated here")
        if self.frac not in (32, 48):
            raise UsageError(f"frac {self.frac} is neither 48 (Intel) nor 32 (AMD)")
        if self.version not in (6, 7) or (self.version == 6 and self.compression != "none"):
            raise UsageError("version is 6 (which has no compression) or 7")
        if self.unrecorded_cpus >= self.cpus:
            raise UsageError("of the host's CPUs at least one is recorded")
        if self.late_start + self.early_end > 0.9:
            raise UsageError("late_start and early_end together leave less than a tenth of the host's recording")
        if self.hotplug and self.vcpus < 2:
            raise UsageError("a vCPU that comes later needs another one that is there")

    @property
    def host_clock(self) -> str:
        """The host's trace clock."""
        return self.clock or RAW_CLOCK[self.arch]

    @property
    def guests_clock(self) -> str:
        """The guests' trace clock: the host's unless said otherwise."""
        return self.guest_clock or self.host_clock

    @property
    def host_khz(self) -> int:
        """The rate of the host's counter."""
        return self.khz or DEFAULT_KHZ[self.arch]

    def features(self) -> dict[str, Any]:
        """What is not as usual, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("seed", 0, (1 << 63) - 1),
    ("vms", 1, 256),
    ("vcpus", 1, 256),
    ("cpus", 1, MAX_CPUS),
    ("events", 100, MAX_EVENTS),
    ("khz", 0, 10_000_000),
    ("khz_b", 0, 10_000_000),
    ("guest_khz", 0, 10_000_000),
    ("nested_khz", 0, 10_000_000),
    ("start", 0, (1 << 64) - 1),
    ("offset", -(1 << 63), (1 << 63) - 1),
    ("differ", 0, 1 << 62),
    ("pauses", 0, 20),
    ("restores", 0, 20),
    ("writes", 0, 20),
    ("returns", 0, 3),
    ("drift_ppm", -1000, 1000),
    ("slews", 0, 1000),
    ("steps", 0, 100),
    ("nested", 0, 64),
    ("lose", 0, 100_000),
    ("lose_guest", 0, 100_000),
    ("unrecorded_cpus", 0, MAX_CPUS),
    ("late_start", 0, 0.9),
    ("early_end", 0, 0.9),
    ("fast_exits", 0, 1),
    ("unlogged", 0, 1),
    ("decoys", 0, 256),
    ("error", -(1 << 62), 1 << 62),
)


def random_options(seed: int) -> WorldOptions:
    """A small world, of a few thousand events, with features drawn from the whole space by ``seed``."""
    rng = random.Random(seed)  # noqa: S311 (a world, no secret)

    def maybe(chance: float, value: Any, otherwise: Any = 0) -> Any:  # noqa: ANN401 (of any field)
        return value if rng.random() < chance else otherwise

    arch: Arch = rng.choice(("x86", "x86", "arm64"))
    x86 = arch == "x86"
    raw = RAW_CLOCK[arch]
    clock = maybe(0.35, rng.choice(NS_CLOCKS), raw)
    guest_clock = maybe(0.15, rng.choice((raw, *NS_CLOCKS)), clock)
    exact = clock == guest_clock == raw
    nested = maybe(0.25, rng.choice((1, 1, 2)))
    migrate = not nested and rng.random() < 0.12
    vcpus = rng.choice((1, 2, 2, 3)) if not nested else rng.choice((1, 2, 2))
    khz = rng.choice((1_000_000, 1_996_250, 2_100_000, 2_400_001, 2_999_999, 3_700_000) if x86 else
                     (19_200, 24_000, 25_000, 31_250, 50_000, 54_000, 62_500, 100_000, 1_000_000))  # fmt: skip
    jumps = {
        "pauses": maybe(0.2, rng.choice((1, 1, 2))),
        "restores": maybe(0.1, 1),
        "writes": maybe(0.12, 1) if x86 else 0,
        "hotplug": vcpus > 1 and rng.random() < 0.1,
    }
    scaled = x86 and rng.random() < 0.2
    guest_khz = int(khz * rng.uniform(0.4, 2.5)) if scaled else 0
    losing = rng.random() < 0.25
    # a scaled guest's counter jumps where the host's wraps
    starts = (0, (1 << 63) - 10**8, (1 << 59) - 10**8, *(() if scaled else ((1 << 64) - 10**8,)))
    cpus = rng.choice((1, 2, 2, 3, 4))
    forms: tuple[tuple[int, Compression], ...] = ((6, "none"), (7, "none"), (7, "zstd"))
    version, compression = rng.choice(forms)
    return WorldOptions(
        seed=seed,
        arch=arch,
        vms=maybe(0.15, 2, 1),
        vcpus=vcpus,
        cpus=cpus,
        events=rng.choice((2_000, 3_000, 5_000, 8_000)),
        clock="" if clock == raw else clock,
        guest_clock="" if guest_clock == clock else guest_clock,
        khz=khz,
        start=maybe(0.2, rng.choice(starts), None) if x86 else None,
        differ=int(10 ** rng.uniform(3, 10)) if x86 and vcpus > 1 and rng.random() < 0.2 else 0,
        **jumps,
        silent=rng.random() < 0.4,
        probes=not x86 and rng.random() < 0.3,
        guest_khz=guest_khz,
        frac=rng.choice((32, 48)),
        drift_ppm=round(rng.uniform(-200, 200), 3) if not exact and rng.random() < 0.6 else 0.0,
        slews=0 if exact else maybe(0.5, rng.randint(1, 6)),
        steps=(steps := 0 if exact else maybe(0.1, 1)),
        nested=nested,
        nested_khz=int(khz * rng.uniform(0.5, 1.5)) if nested and scaled and rng.random() < 0.5 else 0,
        nested_events=bool(nested) and rng.random() < 0.5,
        migrate=migrate,
        returns=int(migrate and not seed % 2),
        khz_b=int(khz * rng.uniform(0.7, 1.4)) if migrate and rng.random() < 0.7 else 0,
        lose=rng.randint(1, 12) if losing else 0,
        lose_guest=maybe(0.1, rng.randint(1, 4)),
        uncounted=rng.random() < 0.3,
        unrecorded_cpus=maybe(0.15, 1) if cpus > 1 else 0,
        late_start=maybe(0.12, round(rng.uniform(0.01, 0.4), 3), 0.0),
        early_end=maybe(0.12, round(rng.uniform(0.01, 0.4), 3), 0.0),
        fast_exits=rng.choice((0.0, 0.3, 0.6, 0.9)),
        unlogged=maybe(0.1, 0.1, 0.0),
        latency=maybe(0.25, "emulated", "metal"),
        decoys=rng.choice((0, 0, 1, 2)),
        kvm_events=rng.random() > 0.07,
        timers=rng.random() < 0.7,
        vtimers=not migrate and not steps and bool(seed % 3),
        time_shift=rng.choice(("none", "none", "true", "true", "wrong", "nested", "zero")),
        error=rng.choice((-1, 1)) * int(10 ** rng.uniform(5, 11)),
        guest_option=rng.random() < 0.4,
        tsc2nsec=x86 and rng.random() < 0.3,
        cmdlines=rng.random() < 0.9,
        uname=rng.random() < 0.9,
        version=version,
        compression=compression,
        pvclock=x86 and guest_clock == "local" and min(khz, guest_khz or khz) > PVCLOCK_KHZ and rng.random() < 0.5,
        # drawn last: what was drawn before there was this is drawn as it was
        offset=maybe(0.04, 0, None),
    )
