"""What tests share: databases, and, for tests of whole systems, one running system for those that only use it, and the
means to make more.

Tests of what the authority keeps take the fixture `storage`, the URL of an empty database: SQLite's, and, where a test
is marked `every_storage` or with the option `--every-storage` (`make test-postgresql`), PostgreSQL's too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.emulated_tpm import EmulatedTpm, manufacture
from deploy.demo.tpm_maker import TpmMaker
from tests.support.commands import CommandServer
from tests.support.peers import etcd
from tests.support.postgresql import PostgresqlServer, postgresql_server
from tests.support.site import storage_url
from tests.support.system import MakeSystem, MakeTpm, System


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-storage", action="store_true", help="with PostgreSQL wherever a database is chosen")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "storage" in metafunc.fixturenames:
        every = metafunc.definition.get_closest_marker("every_storage") or metafunc.config.getoption("--every-storage")
        metafunc.parametrize("storage", ["sqlite", "postgresql"] if every else ["sqlite"], indirect=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with postgresql_server() as server:
        yield server


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, for `foundation.storage.settings.StorageSettings`."""
    if request.param == "sqlite":
        yield storage_url(tmp_path)
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    server.empty()
    yield server.url


@pytest.fixture(scope="session")
def commands() -> Iterator[CommandServer]:
    with CommandServer() as server:
        yield server


@pytest.fixture(scope="session")
def tpm_maker() -> TpmMaker:
    return TpmMaker.create()


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An etcd's URL."""
    with etcd(tmp_path_factory.mktemp("control-plane")) as url:
        yield url


@pytest.fixture(scope="session")
def initialised(
    tmp_path_factory: pytest.TempPathFactory, commands: CommandServer, tpm_maker: TpmMaker, control_plane: str
) -> System:
    """What `sallyport init` makes; copies of it are used, for making one takes seconds."""
    system = System(tmp_path_factory.mktemp("initialised"), control_plane, commands, tpm_maker)
    system.initialise()
    return system


@pytest.fixture(scope="session")
def make_system(tmp_path_factory: pytest.TempPathFactory, initialised: System) -> MakeSystem:
    """Makes systems that are initialised and not started; the caller stops what it starts."""
    return lambda name: initialised.copy(tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def system(make_system: MakeSystem) -> Iterator[System]:
    """The running system that scenarios share: each brings its own nodes, roles and routes."""
    with make_system("system").running() as started:
        yield started


@pytest.fixture
def make_tpm(tmp_path: Path, tpm_maker: TpmMaker) -> Iterator[MakeTpm]:
    """Makes devices of the maker whom the systems believe, powered on until the test ends."""
    with contextlib.ExitStack() as stack:

        def make(name: str) -> EmulatedTpm:
            return stack.enter_context(manufacture(tmp_path / f"tpm-{name}", tpm_maker))

        yield make
