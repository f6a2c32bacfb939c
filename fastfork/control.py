"""Looking after templates: what one does, its end, and a new one in its place."""

from __future__ import annotations

from . import context

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from .status import ServerStatus


def stop(template: str | None = None) -> None:
    """Let go of a template: this process starts no more processes from it.

    Its live children go on, and their exit codes arrive. The template leaves with the last of them, and gives its
    memory back; where no child of this process lives it has ended when this returns. A template that still preloads is
    ended at once. The next start launches another one.

    Other processes that use the same template, such as children that have started children, go on doing so for as
    long as they live: then this returns after some seconds without having seen its end. Where none runs, nothing
    happens.

    Parameters
    ----------
    template:
        The template's name, as in `get_context`; None for the default one.

    """
    context._server(template).stop()


def restart(
    template: str | None = None, *, preload: list[str] | None = None, on_error: str | None = None
) -> None:
    """Launch another template in place of the running one, which is left as by `stop`.

    Parameters
    ----------
    template:
        The template's name, as in `get_context`; None for the default one.
    preload, on_error:
        What the new one imports and what an exception there does, as in `get_context`; None: as before. Such an
        exception is told by the next ``start()``.

    Raises `OSError` when the new template cannot be launched, `TypeError` and `ValueError` as `get_context`, and then
    the running template is left as it is.

    """
    server = context._server(template)
    server.change_preload(preload, on_error=on_error)
    server.stop()
    server.ensure_running()


def server_status(template: str | None = None) -> ServerStatus:
    """Return what a template's server tells of itself: pid, uptime, starts, failures, live children, and more.

    It launches no template and waits for no preload. The first call for a template asks its server for a page of
    memory on which the server keeps count; all others read that page, in microseconds, and even while the server is
    busy or stopped.

    Parameters
    ----------
    template:
        The template's name, as in `get_context`; None for the default one.

    Raises `TimeoutError` when the first call gets no answer within five seconds.

    """
    return context._server(template).status()
