"""Nodes' agents, as `sallyport agent run`, with keys in software: what the TPM costs is measured elsewhere."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from agent.store import Identity, KeyFile, NodeStore
from benchmarks.processes import ENVIRONMENT, ROOT, running, wait_until
from benchmarks.site import DOMAIN, Site
from foundation.wire.enrolment import Issued

LIFE = 6 * 3600
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", re.DOTALL)
_SECTION = """\
[agent]
directory = {directory}
gateways = [{gateway}]
renewal = {authority}
attestation = "none"
timeout = "30s"

[agent.firewall]
enabled = false

[agent.serving]
streams = 4096
per_caller = 4096

"""


@contextmanager
def agent(
    site: Site, name: str, *, ports: Mapping[int, str] | None = None, offers: Mapping[str, int] | None = None
) -> Iterator[int]:
    """The agent of node `name`, who has a certificate in `site.clients`, with its tunnel up; its process's ID.
    `ports` leads from ports of loopback to nodes, over the route `sink`; `offers` are ports of services by name."""
    folder = site.folder / f"agent-{name}"
    NodeStore(folder).save(_identity(site, name))
    config, log = folder / "agent.toml", folder / "agent.log"
    section = _SECTION.format(
        directory=json.dumps(str(folder)),
        gateway=json.dumps(f"127.0.0.1:{site.ports['gateway']}"),
        authority=json.dumps(f"127.0.0.1:{site.ports['api']}"),
    )
    for port, target in (ports or {}).items():
        section += f'[[agent.port]]\nlisten = "127.0.0.1:{port}"\nroute = "sink"\ntarget = "{target}"\n'
        section += "connections = 4096\n"
    section += "[agent.offers]\n"
    section += "".join(f'{service} = "tcp://127.0.0.1:{port}"\n' for service, port in (offers or {}).items())
    config.write_text(section)
    with running([sys.executable, *ENTRY, "agent", "run", "--config", config], log) as process:
        wait_until(lambda: _is_up(config), process, log)
        try:
            yield process.pid
        except Exception:
            print(f"the end of {log}:", *log.read_text().splitlines()[-10:], sep="\n", file=sys.stderr)
            raise


ENTRY = ("-m", "sallyport")


def _identity(site: Site, name: str) -> Identity:
    """As if the node had enrolled."""
    pem = (site.clients / f"{name}.pem").read_bytes()
    certificates = [*_PEM.findall(pem), site.root.read_bytes()]
    chain = tuple(ssl.PEM_cert_to_DER_cert(each.decode()) for each in certificates)
    now = int(time.time())
    issued = Issued(f"spiffe://{DOMAIN}/node/{name}", chain, now + LIFE, now + LIFE // 2, "none", now + LIFE)
    return Identity(issued, KeyFile("software", _PEM.sub(b"", pem)))


def _is_up(config: Path) -> bool:
    words = [sys.executable, "-m", "sallyport", "agent", "status", "--json", "--config", str(config)]
    asked = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=False)
    if asked.returncode:
        return False
    found = json.loads(asked.stdout)
    return found["floor"] > 0 and all(tunnel["up"] for tunnel in found["tunnels"])
