"""A soak: many clients start processes of all kinds on one fork server, while everything goes wrong around them.

    python -m tests.stress.soak --starts 200000 --minutes 20      the long run
    python -m tests.stress.soak --starts 1000 --minutes 0.3       a short one
    python -m tests.stress.soak --on stdlib --starts 1000         the same on the standard library's fork server

Each start is written down before it is made, together with the exit code that it has to end with, and its end after.
A start is accounted for when its exit code is right, or when a fault that happened at that very time explains what
came instead: a child that was killed, a client that was killed with its starts, an `OSError` with an errno that the
fault may cause. Everything else is a problem, and so are a template that grows, and anything that is left at the end:
a process, a file.

Templates are killed, stopped and limited, but for one: the steady one has half of the clients, whatever becomes of
them, and has to be at the end what it was before, without a child, dead or alive, and without a descriptor more.

Modules: `behaviours` (what processes do), `options` (what some of them are to be before that), `clients` (who starts
them), `vandals` (clients that behave badly), `servers` (fastfork or the standard library), `journal` (what clients
write down), `account` (what it amounts to), `faults` (what is done to clients, children and templates), `watch` (what
templates hold), `conductor` (the run), `report`.
"""
