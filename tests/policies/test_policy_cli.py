"""`sallyport policy`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import pytest
from typer.testing import CliRunner, Result

from foundation.faults import Fault, problem
from foundation.reasons import Reason
from policies.cli import app
from policies.signing import public_pem
from tests.support.policy import STARTER
from tests.support.signing import new_signing_key, store_signing_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(STARTER, tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    key = new_signing_key()
    store_signing_key(tmp_path / "policy.key", key)
    (tmp_path / "policy.pub").write_bytes(public_pem(key))
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_check_passes_the_starter(folder: Path) -> None:
    done = run("check", folder)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "2 routes" in done.stdout
    assert json.loads(run("check", folder, "--json").stdout)["ok"] is True


def test_check_tells_every_fault_at_its_line(folder: Path) -> None:
    grants = (folder / "grants.yaml").read_text()
    (folder / "grants.yaml").write_text(grants.replace("route: models", "route: modles").replace("[GET]", "[GTE]", 1))
    done = run("check", folder)
    assert done.exit_code == 1
    lines = [line.split(":")[0:2] for line in done.stderr.splitlines()]
    assert [name for name, _ in lines] == ["grants.yaml", "grants.yaml"]
    faults = json.loads(run("check", folder, "--json").stdout)["faults"]
    assert [fault["reason"] for fault in faults] == ["policy_data_invalid"] * 2


def test_check_in_production_refuses_a_virtual_tpm(folder: Path) -> None:
    assert run("check", folder, "--production").exit_code == 0
    routes = (folder / "routes.yaml").read_text()
    (folder / "routes.yaml").write_text(routes.replace("# attestation: hardware", "attestation: virtual"))
    done = run("check", folder, "--production")
    assert done.exit_code == 1
    assert "hardware at least" in done.stderr


def test_check_tells_a_compile_error_at_its_line(folder: Path) -> None:
    (folder / "rules").mkdir()
    (folder / "rules" / "own.rego").write_text('package sallyport.custom\n\ndeny contains "x" if {\n')
    done = run("check", folder)
    assert done.exit_code == 1
    assert done.stderr.startswith("rules/own.rego:")


def test_test_runs_them_and_wants_every_line_covered(folder: Path) -> None:
    assert json.loads(run("test", folder, "--json").stdout)["coverage"] == 100.0
    (folder / "rules").mkdir()
    (folder / "rules" / "own.rego").write_text('package sallyport.custom\n\ndeny contains "x" if input.now == 1\n')
    done = run("test", folder)
    assert done.exit_code == 1
    assert "rules/own.rego:3: no test covers this" in done.stdout
    assert "policy_test_failed" in done.stderr
    assert run("test", folder, "--coverage", "90").exit_code == 0


def test_build_then_show(folder: Path, keys: Path) -> None:
    out = keys / "r3.tar.gz"
    done = run("build", folder, "--number", 3, "--key", keys / "policy.key", "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    built = json.loads(done.stdout)
    shown = json.loads(run("show", out, "--key", keys / "policy.pub", "--json").stdout)
    assert (shown["number"], shown["digest"]) == (3, built["digest"])
    assert "control-plane" in run("show", out, "--key", keys / "policy.pub").stdout


def test_build_refuses_what_its_tests_refuse(folder: Path, keys: Path) -> None:
    (folder / "rules").mkdir()
    (folder / "rules" / "own_test.rego").write_text("package x_test\n\ntest_it if false\n")
    out = keys / "r3.tar.gz"
    done = run("build", folder, "--number", 3, "--key", keys / "policy.key", "--out", out)
    assert done.exit_code == 1
    assert not out.exists()


def test_show_refuses_another_s_archive(folder: Path, keys: Path) -> None:
    out = keys / "r3.tar.gz"
    run("build", folder, "--number", 3, "--key", keys / "policy.key", "--out", out)
    (keys / "other.pub").write_bytes(public_pem(new_signing_key()))
    done = run("show", out, "--key", keys / "other.pub")
    assert done.exit_code == 1
    assert "revision_signature" in done.stderr
    assert "sallyport" not in done.stdout


def test_publish_posts_the_archive_and_tells_the_number(keys: Path) -> None:
    (keys / "r.tar.gz").write_bytes(b"an archive")
    seen: list[tuple[str, bytes]] = []
    with authority(keys / "api.sock", 201, {"revision": 3}, seen):
        done = run("publish", keys / "r.tar.gz", "--socket", keys / "api.sock")
    assert (done.exit_code, done.stdout) == (0, "published  revision 3\n"), done.stderr
    assert seen == [("POST /v1/policy/revisions application/octet-stream", b"an archive")]


def test_publish_tells_why_it_was_refused(keys: Path) -> None:
    (keys / "r.tar.gz").write_bytes(b"an archive")
    refusal = problem(Fault(Reason.REVISION_DOWNGRADE, "number 3, the highest seen is 4"))
    with authority(keys / "api.sock", 409, dict(refusal), []):
        done = run("publish", keys / "r.tar.gz", "--socket", keys / "api.sock")
    assert done.exit_code == 1
    assert "the highest seen is 4  [revision_downgrade]" in done.stderr


@contextmanager
def authority(path: Path, status: int, answer: dict[str, object], seen: list[tuple[str, bytes]]) -> Iterator[None]:
    """Something at a Unix socket that takes one request and answers it like the authority's API."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((f"POST {self.path} {self.headers['Content-Type']}", body))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: object) -> None:
            pass

    with UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize("command", [["check", "/nowhere"], ["show", "/nowhere", "--key", "/nowhere"]])
def test_a_missing_file_is_a_fault(command: list[str]) -> None:
    done = run(*command)
    assert done.exit_code == 1
    assert "file_unreadable" in done.stderr


def test_a_wrong_command_line_is_exit_code_2() -> None:
    assert run("build", "x").exit_code == 2
