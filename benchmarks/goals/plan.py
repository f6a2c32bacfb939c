"""How much is measured for the goals."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Numbers of processes and pools for each rival. `slices` is how often the rivals take turns."""

    slices: int = 20
    starts: int = 600
    flights: int = 480
    arrivals: int = 1000
    crowd: int = 2000
    crowd_starts: int = 300
    small_heap: str = "bench_heap_small"
    large_heap: str = "bench_heap_large"
    heap_starts: int = 60
    memory_pools: int = 3
    pools: int = 16
    first_pools: int = 7
    scaling_starts: int = 160
    scaling_slices: int = 6

    @classmethod
    def quick(cls) -> Plan:
        """A plan for a first look: fewer of everything, and a smaller crowd."""
        return cls(
            slices=4,
            starts=120,
            flights=96,
            arrivals=160,
            crowd=500,
            crowd_starts=60,
            heap_starts=16,
            memory_pools=1,
            pools=4,
            first_pools=2,
            scaling_starts=80,
            scaling_slices=2,
        )

    def per_slice(self, count: int, share: float = 1.0) -> int:
        """The part of `count` that one slice measures, of a rival that runs a share of the rounds."""
        return max(1, round(count * share / self.slices))
