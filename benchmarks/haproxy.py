"""HAProxy three times, in the places of agent, gateway and agent: TCP, then mTLS, mTLS, and TCP again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.processes import Subject, listens, running, wait_until
from benchmarks.site import Site
from deploy.demo.free_ports import free_ports

NAME = "HAProxy, mTLS, three in a row"
_CONFIGURATION = """\
global
    maxconn 4000
    ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
    ssl-default-server-options ssl-min-ver TLSv1.3
defaults
    mode tcp
    timeout client 1h
    timeout server 1h
    timeout connect 5s
listen pass
    bind 127.0.0.1:{port} {accepts}
    server next 127.0.0.1:{following} {dials}
"""


@contextmanager
def chain(folder: Path, site: Site, sink: int) -> Iterator[Subject]:
    """Leads from the port of the subject to `sink`. Node `edge-0` stands for both agents, the server for the gateway.
    Raises `RuntimeError` when there is no HAProxy."""
    binary = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if binary is None:
        raise RuntimeError("no haproxy: `apt-get install haproxy`")
    folder.mkdir()
    server, node = folder / "server.pem", site.clients / "edge-0.pem"
    server.touch(0o600)
    server.write_bytes(b"".join(path.read_bytes() for path in site.server_pair))
    accepts = f"ssl crt {server} ca-file {site.root} verify required"
    dials = f"ssl crt {node} ca-file {site.root} verify required no-ssl-reuse"
    ports = free_ports(3)
    hops = (("", dials), (accepts, dials), (accepts, ""))
    with ExitStack() as stack:
        pids = []
        for number, (port, following, words) in enumerate(zip(ports, [*ports[1:], sink], hops, strict=True)):
            file, log = folder / f"{number}.cfg", folder / f"{number}.log"
            file.write_text(_CONFIGURATION.format(port=port, following=following, accepts=words[0], dials=words[1]))
            process = stack.enter_context(running([binary, "-db", "-f", file], log))
            wait_until(listens(port), process, log)
            pids.append(process.pid)
        yield Subject(NAME, ports[0], tuple(pids))
