"""The main job, told as a story: `make demo`. Everything runs on this machine, on loopback, with an emulated TPM.

Each chapter runs the commands that a user would run and shows what they answer. With `--keep` everything stays up until
Ctrl-C, and the last chapter says how to try it by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from agent.call import Call, call
from agent.keys import client_context, stored_key, tpm_for
from agent.settings import Address, AgentSettings
from agent.store import NodeStore
from deploy.demo.brokered import TwoNodes
from deploy.demo.emulated_tpm import manufacture
from deploy.demo.free_ports import free_ports
from deploy.demo.tpm_maker import TpmMaker
from foundation.faults import Fault

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".demo"
NODE, DOMAIN = "edge-1", "demo.example"
START_SECONDS = 20.0
out = Console(highlight=False, soft_wrap=True)


class Story:
    """The demo's machines and what they listen on."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.began = time.monotonic()
        self.state, self.node = FOLDER / "state", FOLDER / "node"
        names = ("gateway", "enrolment", "api", "health", "etcd", "etcd_peer")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.maker = TpmMaker.create()
        self.tpm = manufacture(FOLDER / "tpm", self.maker)

    # --- telling ----------------------------------------------------------------------------------

    @contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        began = time.monotonic()
        out.print(Text(f"\n● {title}", "bold"))
        yield
        out.print(Text(f"  {time.monotonic() - began:.2f} s", "dim"))

    def tell(self, *lines: str) -> None:
        for line in lines:
            out.print(Text(f"  {line}"))

    def run(self, *words: str, expect: int = 0, quiet: bool = False) -> str:
        """One `sallyport` command as a user types it; shows it, and gives what it printed."""
        shown = " ".join(word if " " not in word else f"'{word}'" for word in words)
        if not quiet:
            out.print(Text(f"  $ sallyport {shown.replace(str(FOLDER), '.demo')}", "cyan"))
        done = subprocess.run(
            [sys.executable, "-m", "sallyport", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode != expect:
            raise SystemExit(f"the demo failed: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    # --- chapters ---------------------------------------------------------------------------------

    def control_plane(self) -> None:
        with self.chapter("A control plane: etcd, which knows nothing of who calls it"):
            client, peer = f"http://127.0.0.1:{self.ports['etcd']}", f"http://127.0.0.1:{self.ports['etcd_peer']}"
            words = ["etcd", "--data-dir", str(FOLDER / "etcd"), "--log-level", "error"]
            words += ["--listen-client-urls", client, "--advertise-client-urls", client]
            words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            words += ["--initial-cluster", f"default={peer}"]
            self.background(words, "etcd.log")
            wait_for(f"{client}/health", "etcd")
            self.tell(f"etcd answers on {client}")

    def authority(self) -> None:
        with self.chapter("The authority is made: root, issuing CA, policy key, first operator"):
            ports = self.ports
            words = ["init", "--trust-domain", DOMAIN, "--directory", str(self.state), "--host", "127.0.0.1"]
            words += ["--control-plane", f"http://127.0.0.1:{ports['etcd']}"]
            for name in ("gateway", "enrolment", "api", "health"):
                words += [f"--{name}-port", str(ports[name])]
            self.tell(*self.run(*words).splitlines()[:2])
            self.edit(self.state / "sallyport.toml", 'classes = ["hardware"] ', 'classes = ["hardware", "virtual"] ')

    def manufacture(self) -> None:
        with self.chapter("A node comes from the factory: a TPM 2.0 with its maker's certificate, booted and measured"):
            (self.state / "makers" / "virtual" / "maker.pem").write_bytes(self.maker.root_pem)
            self.stack.enter_context(self.tpm)
            self.write_agent_settings()
            self.tell(
                f"swtpm at {self.tpm.tcti}; its maker is pinned as `virtual`: an emulator never passes for hardware"
            )

    def serve(self) -> None:
        with self.chapter("Authority and gateway start"):
            config = str(self.state / "sallyport.toml")
            out.print(Text("  $ sallyport serve --config .demo/state/sallyport.toml", "cyan"))
            self.background([sys.executable, "-m", "sallyport", "serve", "--config", config], "serve.log")
            wait_for(f"http://127.0.0.1:{self.ports['health']}/readyz", "sallyport serve")
            self.tell("ready: facts and policy are whole")

    def enrol(self) -> None:
        with self.chapter("The node enrols: a certificate only against proof by its TPM"):
            self.run(
                "inventory",
                "add",
                NODE,
                "--tier",
                "2",
                "--site",
                "lab",
                "--segment",
                "edge",
                "--role",
                "edge-agent",
                *self.api(),
            )
            token_file = FOLDER / "token"
            self.run("token", "create", NODE, "--output", str(token_file), *self.api())
            words = ["node", "enrol", "--token-file", str(token_file), "--config", str(FOLDER / "agent.toml"), "--json"]
            issued = json.loads(self.run(*words))
            self.tell(
                f"identity     {issued['spiffe_id']}",
                f"lifetime     until {issued['not_after']}, renewal from {issued['renew_after']}",
                f"attestation  {issued['attestation']}, key in the {issued['key']}",
            )

    def allowed(self) -> None:
        with self.chapter(
            "An allowed call: mTLS with the key in the TPM, decided by policy, answered by the control plane"
        ):
            self.tell(self.call("GET", "/version").strip())

    def denied(self) -> str:
        with self.chapter("A denied call: policy grants nodes no writes"):
            text = self.call("POST", "/v3/kv/put", "--data", PUT, expect=1)
            self.tell(*text.strip().splitlines())
            decision = text.rsplit("explain ", 1)[1].split()[0]
            self.tell("")
            self.tell(*self.run("explain", decision, *self.api()).rstrip().splitlines())
            return decision

    def edited(self) -> None:
        with self.chapter("The security team edits the policy, tests it, publishes it; the same call is allowed"):
            grants = self.state / "policy" / "grants.yaml"
            grants.write_text(uncomment(grants.read_text()))
            self.publish(2)
            self.tell(self.call("POST", "/v3/kv/put", "--data", PUT).strip())

    def revoked(self, nodes: TwoNodes) -> None:
        with self.chapter("A watch and a brokered stream are open; the node is revoked; both are cut"):
            asyncio.run(self.watch_and_revoke(nodes.watch_cut()))

    def audited(self) -> None:
        with self.chapter("The audit log is verified: a Merkle tree, every change of trust in it"):
            text = self.run("audit", "verify", "--config", str(self.state / "sallyport.toml"))
            self.tell(*text.strip().splitlines())

    # --- what the chapters share --------------------------------------------------------------------

    async def watch_and_revoke(self, stream_ended: Callable[[], float]) -> None:
        settings = AgentSettings.load(FOLDER / "agent.toml")
        identity = NodeStore(settings.directory).identity()
        seen: asyncio.Queue[bytes] = asyncio.Queue()
        with tpm_for(identity.key, settings) as tpm:
            context = client_context(identity, stored_key(identity.key, tpm))
            request = Call("POST", "/v3/watch", body=WATCH.encode(), seconds=None)
            out.print(Text("  $ sallyport node call POST /v3/watch --stream --data …", "cyan"))
            watch = asyncio.create_task(
                call(Address("localhost", self.ports["gateway"]), context, request, seen.put_nowait)
            )
            self.tell("the watch is open: " + shorten(await asyncio.wait_for(seen.get(), 10)))
            await asyncio.to_thread(self.put_directly)
            self.tell("an event arrives:  " + shorten(await asyncio.wait_for(seen.get(), 10)))
            revoking = asyncio.create_task(asyncio.to_thread(self.revoke))
            try:
                await watch
            except Fault as fault:
                closed = time.time()
                committed = await revoking
                self.tell(f"the watch ended: {fault.detail}")
                took = f"{(closed - committed) * 1000:.1f} ms"
                out.print(Text(f"  from the revocation's commit to the close seen by the node: {took}", "bold green"))
                stream = (await asyncio.to_thread(stream_ended) - committed) * 1000
                out.print(Text(f"  and to the end of its stream to the other node: {stream:.1f} ms", "bold green"))
        text = self.call("GET", "/version", expect=1)
        self.tell("and a new call:", *(f"  {line}" for line in text.strip().splitlines()[:2]))

    def revoke(self) -> float:
        """When the revocation was committed, in seconds since the Unix epoch."""
        words = ("inventory", "revoke", NODE, "--reason", "key_compromise", "--json", *self.api())
        return float(json.loads(self.run(*words))["revocations"][0]["at"])

    def put_directly(self) -> None:
        url = f"http://127.0.0.1:{self.ports['etcd']}/v3/kv/put"
        urllib.request.urlopen(urllib.request.Request(url, PUT.encode()), timeout=5).close()

    def call(self, method: str, path: str, *more: str, expect: int = 0) -> str:
        return self.run("node", "call", method, path, *more, "--config", str(FOLDER / "agent.toml"), expect=expect)

    def publish(self, number: int) -> None:
        workspace, key = str(self.state / "policy"), str(self.state / "authority" / "policy.key")
        bundle = str(FOLDER / f"revision-{number}.bundle")
        self.run("policy", "build", workspace, "--number", str(number), "--key", key, "--out", bundle)
        self.tell(*self.run("policy", "publish", bundle, *self.api()).strip().splitlines())

    def api(self) -> tuple[str, ...]:
        return ("--socket", str(self.state / "sallyport.sock"))

    def write_agent_settings(self) -> None:
        ports = {name: f"localhost:{self.ports[port]}" for name, port in AGENT_PORTS.items()}
        lines = [f'{name} = "{address}"' for name, address in ports.items()]
        lines += [f'directory = "{self.node}"', f'tcti = "{self.tpm.tcti}"', f'event_log = "{self.tpm.event_log}"']
        (FOLDER / "agent.toml").write_text("\n".join(["[agent]", *lines, ""]))

    def background(self, words: list[str], log: str) -> None:
        file = self.stack.enter_context((FOLDER / log).open("wb"))
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file)
        self.stack.callback(stop, process)

    def edit(self, path: Path, before: str, after: str) -> None:
        text = path.read_text()
        if before not in text:
            raise SystemExit(f"the demo failed: {path} has no {before!r}")
        path.write_text(text.replace(before, after))

    def how_to_try(self) -> None:
        with self.chapter("It stays up. Try it by hand; Ctrl-C ends it"):
            operator, command = self.state / "authority" / "operator", Path(sys.executable).with_name("sallyport")
            proven = f"--cert {operator}.pem --key {operator}.key --cacert {self.state}/authority/root.pem"
            self.tell(
                "As the first operator, the API, and then the control plane, which has no grant for operators:",
                f"  curl {proven} https://localhost:{self.ports['api']}/v1/inventory",
                f"  curl {proven} https://localhost:{self.ports['gateway']}/version",
                "Metrics, and the log:",
                f"  curl http://127.0.0.1:{self.ports['health']}/metrics",
                f"  tail -f {FOLDER}/serve.log",
                "Let the node back in:",
                f"  {command} inventory admit {NODE} --socket {self.state}/sallyport.sock",
                f"  {command} node enrol --token-file NEW_TOKEN --config {FOLDER}/agent.toml",
            )
            with suppress(KeyboardInterrupt):
                signal.pause()


AGENT_PORTS = {"authority": "enrolment", "renewal": "api", "gateway": "gateway"}
PUT = '{"key":"ZWRnZS0x","value":"aGVsbG8="}'
WATCH = '{"create_request":{"key":"ZWRnZS0x"}}'


def uncomment(text: str) -> str:
    """The starter's grant `agent-write`, with its marks taken out."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if "- id: agent-write" in line)
    for i in range(start, len(lines)):
        if not lines[i].startswith("  # "):
            break
        lines[i] = "  " + lines[i][4:]
    return "\n".join(lines) + "\n"


def shorten(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace").strip()
    return text if len(text) < 100 else text[:97] + "…"


def wait_for(url: str, what: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"the demo failed: {what} does not answer; see {FOLDER}/*.log")


def stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    keep = parser.parse_args().keep
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(mode=0o700)
    with ExitStack() as stack:
        story = Story(stack)
        story.control_plane()
        story.authority()
        story.manufacture()
        story.serve()
        story.enrol()
        story.allowed()
        story.denied()
        story.edited()
        nodes = TwoNodes(story, FOLDER, FOLDER / "agent.toml")
        nodes.second_node()
        nodes.agents()
        nodes.brokered()
        nodes.refused()
        nodes.direct()
        story.revoked(nodes)
        story.audited()
        out.print(Text(f"\nDone in {time.monotonic() - story.began:.1f} s.", "bold"))
        if keep:
            story.how_to_try()


if __name__ == "__main__":
    main()
