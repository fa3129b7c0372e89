"""Fixtures of the tests that kill, stop and starve the jobs of the store."""

from collections.abc import Iterator

import pytest

from tests.store_jobs import joined_cluster
from tests.undisturbed import Stores


@pytest.fixture(scope="module")
def joined(ray_cluster: None) -> Iterator[None]:
    """Jobs that the tests of a module start join the cluster of the session; none of them is left after the module."""
    with joined_cluster():
        yield


@pytest.fixture(scope="session")
def stores(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """A log, and what undisturbed jobs make of it; tests copy what they change."""
    return Stores.made_in(tmp_path_factory.mktemp("undisturbed"))
