"""Builds fastfork, then checks and tests what was built, on every interpreter found: what `.ci/run` starts.

It needs a C compiler, make and PyPI, and keeps all that it makes in .cache/ci: environments, the wheel, logs.
"""
