"""Whatever fixtures and tests a project has, fastfork says of it what plain pytest does."""

from __future__ import annotations

import pytest

from .random_projects import difference


@pytest.mark.parametrize("seed", range(8))
def test_a_random_project(project, seed):
    assert not difference(project, seed, may_fail=bool(seed % 2))
