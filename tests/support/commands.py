"""`sallyport` commands as processes of their own, which start in milliseconds.

A server process imports the packages once and forks for each command, since importing them costs a busy machine a
second. What a user starts is `python -m sallyport`; `fresh` does just that. A command runs in the network namespace of
the thread that asks for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.support.netns.namespaces import enter_that_of, own_path
from tests.support.processes import PATIENCE, ROOT

COLUMNS = "200"


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def expect(self, code: int) -> Done:
        assert self.code == code, f"sallyport {' '.join(self.words)}: exit code {self.code}\n{self.out}{self.err}"
        return self


def fresh(*words: str, stdin: str = "") -> Done:
    """One command in a process started anew."""
    done = subprocess.run(
        [sys.executable, "-m", "sallyport", *words],
        cwd=ROOT,
        input=stdin,
        env={**os.environ, "COLUMNS": COLUMNS},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return Done(words, done.returncode, done.stdout, done.stderr)


class CommandServer:
    """Runs one command at a time, with `environment` above ours. Usable as a context manager."""

    def __init__(self, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self._guard = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.commands"],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": COLUMNS, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> Done:
        with self._guard, tempfile.TemporaryDirectory() as folder:
            reply = self._ask({"words": words, "folder": folder, "network": own_path()})
            out, err = (Path(folder, name).read_text(errors="replace") for name in ("out", "err"))
        return Done(words, reply["code"], out, err)

    def _ask(self, request: dict[str, Any]) -> Any:
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        return json.loads(replies.readline())

    def __enter__(self) -> CommandServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(PATIENCE)


def _serve() -> None:
    import agent.cli  # noqa: F401
    import foundation.audit.cli  # noqa: F401
    import gateway.cli
    import gateway.orchestrator
    import gateway.wiring.site  # noqa: F401
    import pki.cli
    import pki.operator_cli  # noqa: F401
    import policies.cli  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            enter_that_of(request["network"])
            _command(request["words"], Path(request["folder"]))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps({"code": os.waitstatus_to_exitcode(status)}) + "\n")
        sys.stdout.flush()


def _command(words: Sequence[str], folder: Path) -> None:
    """In the fork: be that command, and end."""
    import sallyport

    code: Any = 1
    try:
        for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
            os.dup2(os.open(folder / name, flags | os.O_CREAT), number)
        sys.argv = ["sallyport", *words]
        sallyport.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
