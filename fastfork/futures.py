"""The future of a task: what came of it, and of its process."""

from __future__ import annotations

from concurrent.futures import Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    Base = Future[Any]
else:
    Base = Future


class TaskFuture(Base):
    """The future of a task of a `fastfork.Executor`.

    A task that has begun cannot be cancelled, as with every executor, but it can be killed.

    Attributes
    ----------
    stdout, stderr:
        What the task and those below it have written there, as bytes, once it is done; None unless the executor, or
        this task, has ``capture=True``.

    """

    stdout: bytes | None = None
    stderr: bytes | None = None
    _kill: Callable[[], object] | None = None

    def kill(self) -> None:
        """End the task: cancel it if it has not begun, else kill its process and its whole process group.

        The future of a task that was killed has a `fastfork.ProcessDiedError`.
        """
        if not self.cancel() and self._kill is not None:
            self._kill()

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for it in asyncio, without a thread; the task ends if the wait is cancelled."""
        return self._until_done().__await__()

    async def _until_done(self) -> Any:
        import asyncio

        try:
            return await asyncio.wrap_future(self)
        finally:
            if not self.done():
                self.kill()
