"""Tasks without an executor that somebody has to keep: `fastfork.run` and `fastfork.map`."""

from __future__ import annotations

from .executor import Executor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["map", "run"]


def run(
    function: Callable[..., Any],
    /,
    *arguments: Any,
    timeout: float | None = None,
    template: str | None = None,
    **keywords: Any,
) -> Any:
    """Call ``function(*arguments, **keywords)`` in a fresh process and return what it returns.

    Parameters
    ----------
    timeout:
        Seconds that it may take; None for any time. A second later its process group is killed.
    template:
        The name of the template that the process comes from, as in `fastfork.get_context`.

    Raises what the function raises, and what `fastfork.Executor.submit` says. ^C interrupts the process too.

    """
    with Executor(1, template=template, timeout=timeout) as executor:
        return executor.submit(function, *arguments, **keywords).result()


def map(  # noqa: A001
    function: Callable[..., Any],
    /,
    *iterables: Iterable[Any],
    max_workers: int | None = None,
    timeout: float | None = None,
    template: str | None = None,
) -> list[Any]:
    """Call a function with the items of `iterables`, each time in a fresh process, and return the results in order.

    Parameters
    ----------
    max_workers:
        How many processes there may be at once; the number of usable CPUs if None.
    timeout:
        Seconds that each call may take; None for any time. A second later its process group is killed.
    template:
        The name of the template that the processes come from, as in `fastfork.get_context`.

    Raises what the first of the calls in order raises that fails; calls that have not begun by then do not.

    """
    with Executor(max_workers, template=template, timeout=timeout) as executor:
        return list(executor.map(function, *iterables))
