"""A real OPA server, for as long as a test or benchmark needs it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from policies.settings import ServerSettings

_PATIENCE = 20.0


class OpaProcess:
    """An OPA server on loopback. After `stop`, `start` begins anew on the same port, with nothing loaded."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "opa.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.settings = ServerSettings(port=_free_port())

    def start(self) -> None:
        """Start, and wait until it answers."""
        address = f"--addr=127.0.0.1:{self.settings.port}"
        with self._log.open("ab") as log:
            command = ["opa", "run", "--server", address, "--skip-version-check", "--log-level=error"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE
        while not self._healthy():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "OPA does not answer"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def policies(self) -> list[str]:
        """The names of the policies that are loaded."""
        return [item["id"] for item in self._get("/v1/policies").get("result") or []]

    def data(self) -> dict[str, Any]:
        """Everything below `data`, rules' answers included."""
        found: dict[str, Any] = self._get("/v1/data").get("result") or {}
        return found

    def _healthy(self) -> bool:
        try:
            self._get("/health")
        except OSError:
            return False
        return True

    def _get(self, path: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.settings.port}{path}"
        with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
