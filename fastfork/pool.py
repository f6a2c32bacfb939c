"""multiprocessing.Pool, whose workers are started all at once."""

from __future__ import annotations

from multiprocessing import pool

from .batch import start_all
from .errors import StartAllError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _nothing() -> None:
    pass


class Pool(pool.Pool):
    """`multiprocessing.pool.Pool`; what it starts it starts by `fastfork.start_all`."""

    @staticmethod
    def _repopulate_pool_static(ctx: Any, Process: Any, processes: int, pool_: list[Any], *rest: Any) -> None:  # noqa: N803
        """Bring the number of workers up; the standard library's own code makes them."""
        made = []

        def make(*args: Any, **kwargs: Any) -> Any:
            worker = Process(*args, **kwargs)
            worker.start = _nothing
            made.append(worker)
            return worker

        pool.Pool._repopulate_pool_static(ctx, make, processes, pool_, *rest)  # type: ignore[attr-defined]
        for worker in made:
            del worker.start
        try:
            start_all(made)
        except StartAllError as error:
            # As after a start() that fails: the pool knows those that run.
            pool_[:] = [worker for worker in pool_ if worker not in error.errors]
            raise next(iter(error.errors.values())) from None
