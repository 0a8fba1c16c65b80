"""What tests of whole systems share: one running system for those that only use it, and the means to make more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.emulated_tpm import EmulatedTpm, manufacture
from deploy.demo.tpm_maker import TpmMaker
from tests.support.commands import CommandServer
from tests.support.peers import etcd
from tests.support.system import MakeSystem, MakeTpm, System


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
