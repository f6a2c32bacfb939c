"""The pytest plugin's options, and no more: pytest imports this in every run. PYTEST_DONT_REWRITE.

It is installed as the package ``pytest_fastfork``, outside of ``fastfork``: a run without ``--fastfork`` does not pay
for the import of fastfork.
"""

from __future__ import annotations

import copy

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the command line options and the ini options."""
    group = parser.getgroup("fastfork", "a fresh process per test (fastfork)")
    group.addoption(
        "--fastfork",
        nargs="?",
        const="auto",
        default=None,
        metavar="N",
        help="run each test in a fresh process, N at a time (auto, the default: as many as there are cores)",
    )
    group.addoption(
        "--fastfork-fixtures",
        choices=("scope", "test"),
        default="scope",
        help=(
            "scope (default): class, module, package and session fixtures are set up once, and each test begins with a "
            "pristine copy of them; test: they are set up in each test's process"
        ),
    )
    group.addoption(
        "--fastfork-timeout",
        type=float,
        default=None,
        metavar="SECONDS",
        help="stop a test that takes longer, show the stacks of its threads, and let it fail",
    )
    group.addoption(
        "--fastfork-leftovers",
        action="store_true",
        help="report the processes, threads and descriptors that tests leave behind",
    )
    parser.addini(
        "fastfork_per_test",
        "names of wide fixtures that are set up in each test's process: what a fork cannot share",
        type="args",
        default=[],
    )
    parser.addini("fastfork_timeout", "as --fastfork-timeout", default=None)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> None:
    """Have a path after a bare ``--fastfork`` be a path, and no number of processes."""
    for position, argument in enumerate(args):
        if argument == "--":
            break
        if argument == "--fastfork":
            following = args[position + 1 : position + 2]
            if following and not following[0].startswith("-") and not _is_number(following[0]):
                args[position] = "--fastfork=auto"
                early_config.known_args_namespace = parser.parse_known_args(
                    args, namespace=copy.copy(early_config.option)
                )


def _is_number(text: str) -> bool:
    return text == "auto" or text.isdigit()


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker; take over the running of the tests where that was asked for."""
    config.addinivalue_line(
        "markers",
        "fastfork_per_test(*names): set up these wide fixtures in the process of each marked test; all, without names",
    )
    if config.getoption("fastfork") is not None:
        from fastfork.pytest_plugin.session import activate

        activate(config)
