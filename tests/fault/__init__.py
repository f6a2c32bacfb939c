"""What may happen to a fork server, and what becomes of it.

`python -m tests.fault` makes the table that compares fastfork's with the standard library's.
"""
