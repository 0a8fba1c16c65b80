"""Row "server-side request forgery by a challenge or webhook" (SPIRE 1.14.2): the authority asks for nothing at an
address that a stranger names. An EK certificate may name issuers, CRLs and OCSP responders; whatever it names is never
dialled, also where the intermediate is missing and could be fetched there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from agent.enrol import enrol
from agent.settings import AgentSettings
from agent.store import NodeStore
from foundation.faults import Fault
from tests.support.agent import EagerClock, quiet
from tests.support.installation import installation
from tests.support.swtpm import CHAIN_INDEX, TpmMaker, erase_nv, manufacture


@dataclass(frozen=True)
class PointingMaker(TpmMaker):
    """Makes EK certificates that point everywhere at `url`."""

    url: str = ""

    def ek_builder(self, key: Any, **given: Any) -> x509.CertificateBuilder:
        where = x509.UniformResourceIdentifier(self.url)
        ways = (AuthorityInformationAccessOID.CA_ISSUERS, AuthorityInformationAccessOID.OCSP)
        access = x509.AuthorityInformationAccess([x509.AccessDescription(way, where) for way in ways])
        points = x509.CRLDistributionPoints([x509.DistributionPoint([where], None, None, None)])
        builder = super().ek_builder(key, **given)
        return builder.add_extension(access, critical=False).add_extension(points, critical=False)


@contextmanager
def trap() -> Iterator[tuple[str, list[object]]]:
    """A listening address, and who came."""
    came: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    connection, peer = listening.accept()
                except OSError:
                    return
                came.append(peer)
                connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/ca.cer", came
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("intermediate", ["in NV", "missing"])
async def test_what_an_ek_certificate_points_at_is_never_dialled(tmp_path: Path, intermediate: str) -> None:
    with trap() as (url, came):
        plain = TpmMaker.create()
        maker = PointingMaker(**{each.name: getattr(plain, each.name) for each in fields(plain)}, url=url)
        with manufacture(tmp_path / "tpm", maker) as tpm:
            if intermediate == "missing":
                with tpm.esapi() as esapi:
                    erase_nv(esapi, CHAIN_INDEX)
            async with installation(tmp_path / "site", virtual=(plain.root,)) as site, site.enrolling() as address:
                settings = AgentSettings(tmp_path / "node", address, tcti=tpm.tcti, event_log=tpm.event_log, timeout=10)
                token, store = await site.token(), NodeStore(settings.directory)
                if intermediate == "in NV":
                    identity = await enrol(settings, token, store, EagerClock(), quiet)
                    assert identity.issued.attestation == "virtual"
                else:
                    with pytest.raises(Fault):
                        await enrol(settings, token, store, EagerClock(), quiet)
    assert came == []
