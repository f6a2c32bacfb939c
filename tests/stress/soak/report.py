"""What a soak says: a line from time to time, a table at the end, and the same as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .account import CLIENT_RESTARTS
from .faults import INTERVALS
from .vandals import WAYS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .account import Account
    from .watch import Idle, Life, Watch

MEBIBYTE = 1 << 20
MOST_PROBLEMS_SHOWN = 30


class Options(NamedTuple):
    """What is asked for."""

    starts: int
    minutes: float
    clients: int
    threads: int
    seed: int
    on: str
    mark: str
    """``NAME=value`` in the environment of every process of the run."""


def progress(options: Options, account: Account, watch: Watch, seconds: float) -> str:
    """Return one line on how far a run is."""
    left = max(0.0, options.minutes * 60 - seconds)
    latest = [life.samples[-1] for life in watch.lives.values() if life.pid in watch.known() and life.samples]
    held = ", ".join(f"{sample.descriptors} fds {sample.resident / MEBIBYTE:.1f} MiB" for sample in latest)
    return (
        f"{seconds:6.0f} s  {account.starts:7} starts  {account.starts / max(seconds, 1):4.0f}/s  "
        f"explained {sum(account.explained.values())}  problems {len(account.problems)}  "
        f"templates: {held or 'none'}  {left:.0f} s left"
    )


def summary(options: Options, account: Account, watch: Watch, seconds: float) -> dict[str, Any]:
    """Return the figures of a run."""
    return {
        "server": options.on,
        "seed": options.seed,
        "clients": options.clients,
        "threads": options.threads,
        "seconds": round(seconds, 1),
        "starts": account.starts,
        "starts per second": round(account.starts / seconds, 1),
        "right": account.right,
        "explained": dict(account.explained.most_common()),
        "faults": {name: account.faults[name] for name in _all_faults()},
        "templates": [_life(life) for life in watch.lives.values() if life.samples],
        "steady": None if account.steady is None else _steady(*account.steady),
        "may be left": sorted(watch.may_be_left),
        "problems": account.problems + watch.problems,
    }


def _all_faults() -> list[str]:
    """Return the names of the faults that there can be, so that one that did not happen shows."""
    return [kind.name for kind in INTERVALS] + [CLIENT_RESTARTS] + [f"a client {way}" for way in sorted(WAYS)]


def _life(life: Life) -> dict[str, Any]:
    growth = life.growth()
    return {
        "pid": life.pid,
        "seconds": round(life.samples[-1].time - life.begin, 1),
        "first": life.samples[0]._asdict(),
        "last": life.samples[-1]._asdict(),
        "growth": None if growth is None else dict(zip(("descriptors", "resident", "private"), growth)),
    }


def _steady(before: Idle, after: Idle) -> dict[str, Any]:
    held = {
        name: {"starts": idle.starts, **idle.sample._asdict()}
        for name, idle in (("before", before), ("after", after))
    }
    return {"pid": after.pid, **held}


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures for people to read."""
    return "\n".join(_lines(figures))


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    yield f"A soak on {figures['server']}, seed {figures['seed']}, {figures['clients']} clients"
    for name in ("seconds", "starts", "starts per second", "right"):
        yield f"  {name:50} {figures[name]:>10}"
    for title in ("explained", "faults"):
        yield f"{title}:"
        for name, count in figures[title].items():
            yield f"  {name:50} {count:>10}"
    yield "templates:              descriptors        resident MiB         private MiB"
    for life in figures["templates"]:
        yield _life_line(life)
    if figures["steady"]:
        yield from _steady_lines(**figures["steady"])
    yield f"problems: {len(figures['problems'])}"
    for problem in figures["problems"][:MOST_PROBLEMS_SHOWN]:
        yield f"  {problem}"


def _life_line(life: Mapping[str, Any]) -> str:
    return f"  {life['pid']:>7} {life['seconds']:7.0f} s {_change(life['first'], life['last'])}"


def _steady_lines(pid: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    served = "" if after["starts"] is None else f" {after['starts'] - before['starts']} starts in between;"
    yield f"the template that nothing was done to, idle, before and after:{served} {after['children']} children left"
    yield f"  {pid:>7} {after['time'] - before['time']:7.0f} s {_change(before, after)}"


def _change(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    sizes = "".join(
        f"{first[kind] / MEBIBYTE:9.1f} -> {last[kind] / MEBIBYTE:6.1f}" for kind in ("resident", "private")
    )
    return f"{first['descriptors']:5} -> {last['descriptors']:4} {sizes}"
