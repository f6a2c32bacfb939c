"""What a template has to know of its client."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would cost every child of a template
if TYPE_CHECKING:
    from typing import Any


class TemplateConfig:
    """The description of a template. It travels to the new interpreter by pickle, over a pipe."""

    has_successors: bool
    """Whether one that has died may be made again from this, by whoever knew it: see `fastfork.succession`."""
    name: str | None
    """The template's name; None for the default one."""
    nested: str
    """``"share"``: children ask this template for their own children. ``"own"``: each starts another one."""
    takes_over: str
    """The start methods that run on fastfork in the whole tree: see `fastfork.installation.take_over`."""
    surroundings: tuple[object, ...]
    """What the launching client has handed on to it, and later what it hands on itself: see `fastfork.surroundings`."""
    preload: list[str]
    on_error: str
    on_threads: str
    preload_timeout: float | None
    """Seconds that preloading may take; None for no limit."""
    max_children: int
    """How many children may live at once; 0 for any number."""
    max_spares: int
    """How many children may be forked ahead of requests while these come fast; 0 for none."""
    spare_quiet: float
    """Seconds without a request after which these go again."""
    prepared: dict[str, Any]
    """The preparation data of the launching client, less the name: a request of a client with the same data does not
    repeat it."""
    is_prepared: bool
    """Whether the template itself has become what that says, the main module included. It sets this."""
    main: dict[str, str]
    """How to import the client's main module: part of its preparation data."""
    main_imports: list[str]
    """What a main module that cannot be imported, such as that of ``python -m package``, has imported itself."""
    calls: list[tuple[str, bytes]]
    """What is called after the preload: a name for it, and a pickle of the callable and its arguments."""
    sys_path: list[str]
    sys_argv: list[str]
    modules: int
    """What the client has of `fastfork.shared_modules`."""
    authkey: bytes
    address: str
    """The path of the socket, in a directory of its own; both are the template's to remove."""
    listener_fd: int
    alive_fd: int
    report_fd: int
    """Where the template tells how far it has come before it serves: see `fastfork.report`."""

    def __init__(self, **values: object) -> None:
        vars(self).update(values)

    def again(self) -> TemplateConfig:
        """Return a description of the same template before it was launched."""
        return TemplateConfig(**{**vars(self), "is_prepared": False})

    def says(self, wishes: dict[str, object]) -> bool:
        """Whether it has all these values."""
        return wishes.items() <= vars(self).items()
