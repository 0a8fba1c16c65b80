"""What the settings of a service mean for its process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.supervised import (
    MAX_LINE,
    Lines,
    ServiceSettings,
    command_line,
    environment,
    parse_environment,
    parse_services,
)
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason


def parsed(*services: dict[str, Any]) -> tuple[ServiceSettings, ...]:
    return parse_services(
        Fields({"service": list(services)}, "agent", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN)
    )


def test_settings_are_read_with_their_defaults(tmp_path: Path) -> None:
    (plain,) = parsed({"name": "infer", "command": ["/bin/true"]})
    assert plain == ServiceSettings("infer", ("/bin/true",))
    (full,) = parsed(
        {
            **{"name": "infer", "command": ["/bin/true", "-x"], "user": "nobody", "environment": "/etc/infer.env"},
            **{"directory": "/srv", "restart_least": "2s", "restart_most": "2m", "quiet": "5m", "stop": "3s"},
            **{"memory": "1GiB", "files": 64},
        }
    )
    assert (full.restart.least, full.restart.most, full.restart.quiet, full.stop) == (2, 120, 300, 3)
    assert (full.memory, full.files, full.environment) == (1 << 30, 64, Path("/etc/infer.env"))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"command": []}, "agent.service[0].command"),
        ({"command": ["true"]}, "agent.service[0].command"),
        ({"command": ["/bin/x", "a\0b"]}, "agent.service[0].command"),
        ({"command": "/bin/true -x"}, "agent.service[0].command"),
        ({"name": "No Name"}, "agent.service[0].name"),
        ({"restart_least": "0s"}, "agent.service[0].restart_least"),
        ({"restart_least": "2m"}, "agent.service[0].restart_least"),
        ({"shell": True}, "agent.service[0]"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(Fault) as caught:
        parsed({"name": "infer", "command": ["/bin/true"], **wrong})
    assert caught.value.field == field


def test_two_services_of_one_name_are_refused() -> None:
    with pytest.raises(Fault, match="one name"):
        parsed(*[{"name": "infer", "command": ["/bin/true"]}] * 2)


def test_the_command_stands_behind_what_is_set_for_it() -> None:
    words = command_line(ServiceSettings("x", ("/bin/echo", "--reuid=0"), memory=1 << 20, files=9))
    assert words[-5:] == ("--as=1048576", "--nofile=9", "--", "/bin/echo", "--reuid=0")
    assert {"--pdeathsig=KILL", "--no-new-privs", "--ambient-caps=-all", "--inh-caps=-all"} < set(words)


def test_a_user_that_is_not_there_is_named() -> None:
    with pytest.raises(Fault, match="no user 'nobody-at-all'"):
        command_line(ServiceSettings("x", ("/bin/true",), user="nobody-at-all"))


def test_the_environment_holds_nothing_of_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/secret")
    file = tmp_path / "env"
    file.write_text("# a comment\n\nTOKEN=a=b\nPATH=/opt\n")
    file.chmod(0o600)
    found = environment(ServiceSettings("x", ("/bin/true",), environment=file))
    assert found == {"LANG": "C.UTF-8", "PATH": "/opt", "TOKEN": "a=b"}
    assert "NOTIFY_SOCKET" in os.environ
    file.chmod(0o644)
    with pytest.raises(Fault) as caught:
        environment(ServiceSettings("x", ("/bin/true",), environment=file))
    assert caught.value.reason is Reason.FILE_MODE_UNSAFE


@pytest.mark.parametrize("line", ["no sign", "=x", "1A=x", "A B=x", "A=\0"])
def test_a_wrong_line_of_the_environment_is_named_without_its_value(line: str) -> None:
    with pytest.raises(Fault) as caught:
        parse_environment(b"A=1\n" + line.encode() + b"hush", "env")
    assert "line 2" in caught.value.detail
    assert "hush" not in str(caught.value)


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), max_size=20))
def test_lines_do_not_depend_on_how_output_is_chunked(output: bytes, cuts: list[int]) -> None:
    whole, pieces = Lines(), Lines()
    expected = whole.feed(output) + whole.end()
    got, rest = [], output
    for cut in cuts:
        got += pieces.feed(rest[:cut])
        rest = rest[cut:]
    got += pieces.feed(rest) + pieces.end()
    assert got == expected
    assert all(each.isprintable() or each == "\t" for line in got for each in line)


@given(st.integers(0, 3 * MAX_LINE), st.integers(1, MAX_LINE * 2))
def test_a_line_is_bounded_and_says_when_it_was_cut(length: int, chunk: int) -> None:
    lines, output, got = Lines(), b"x" * length + b"\nnext\n", []
    for start in range(0, len(output), chunk):
        got += lines.feed(output[start : start + chunk])
    long, following = got
    assert following == "next"
    assert long == "x" * min(length, MAX_LINE) + (" […]" if length > MAX_LINE else "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may hand out a capability")
def test_a_service_gets_none_of_the_agents_capabilities() -> None:
    agent = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    agent += ("--inh-caps=+net_admin", "--ambient-caps=+net_admin", "--")  # as its unit has it
    shown = ("/bin/grep", "Cap", "/proc/self/status")

    def capabilities(*command: str) -> dict[str, int]:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {name: int(mask, 16) for name, mask in (line.split(":\t") for line in said.splitlines())}

    assert capabilities(*agent, *shown)["CapEff"] == 1 << 12  # CAP_NET_ADMIN
    service = capabilities(*agent, *command_line(ServiceSettings("x", shown)))
    assert [service[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
