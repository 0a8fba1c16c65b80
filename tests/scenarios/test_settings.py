"""Every setting of sallyport.toml that is wrong is told by its name with what to do, and nothing is changed."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from gateway.configuration import read_configuration
from gateway.wiring.settings import Settings
from tests.support.commands import fresh
from tests.support.system import MakeSystem, System

_SECTIONS = ("agent", "upstream_authority")  # read by other roles alone
WRONG = {"no": "type of any setting's"}


@pytest.fixture(scope="module")
def idle(make_system: MakeSystem) -> System:
    """Initialised, never started."""
    return make_system("settings")


def known_settings(config: Path) -> list[str]:
    """The path of every setting and section that the parsers ask for, by listening to them."""
    asked: dict[str, None] = {}
    get = Fields._get

    def listening(fields: Fields, name: str, default: Any) -> Any:
        asked[fields._at(name)] = None
        return get(fields, name, default)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fields, "_get", listening)
        Settings.parse(read_configuration(config))
    return list(asked)


def test_every_wrong_setting_is_named_and_nothing_is_changed(idle: System) -> None:
    document = tomllib.loads(idle.config.read_text())
    state = _digest(idle.state)
    names = known_settings(idle.config)
    assert len(names) > 80  # that the parsers are listened to
    for name in names:
        path = _write(idle, _changed(document, name, _wrong(name, names)))
        with pytest.raises(Fault) as told:
            Settings.parse(read_configuration(path))
        assert name in str(told.value)
        assert told.value.reason in {Reason.SETTING_INVALID, Reason.SETTING_UNKNOWN}
    assert _digest(idle.state) == state


def _wrong(name: str, names: list[str]) -> Any:
    """No section can be a number, and no setting a section."""
    return 5 if name in _SECTIONS or any(other.startswith(f"{name}.") for other in names) else WRONG


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sallyport.trust_domain", "Not A Domain"),
        ("sallyport.profile", "prod"),
        ("authority.lifetimes.node", "5s"),
        ("authority.lifetimes.node", "forever"),
        ("authority.server_name", "UPPER"),
        ("enrolment.port", 70000),
        ("enrolment.classes", ["paper"]),
        ("enrolment.classes", []),
        ("enrolment.session", "1h"),
        ("enrolment.pcrs.bank", "md5"),
        ("enrolment.pcrs.indices", [7, 7]),
        ("enrolment.without_tpm", ["everybody"]),
        ("storage.url", "mysql://root@localhost/x"),
        ("decisions.total_size", "1KiB"),
        ("decisions.total_size", 1000),
        ("audit.segment_size", "1B"),
        ("health.host", "0.0.0.0"),  # noqa: S104  # refused: that is the test
        ("health.host", "here"),
        ("health.port", True),
        ("policy.engine", "guess"),
        ("policy.decision_timeout", "0ms"),
        ("policy.memory", "1KiB"),
        ("policy.opa.port", 0),
        ("gateway.listener.port", -1),
        ("gateway.listener.head_bytes", "big"),
        ("gateway.upstreams.max_connections", 0),
        ("gateway.http2.window", "1KiB"),
        ("telemetry.log_level", "loud"),
        ("api.port", "8445"),
    ],
)
def test_a_value_out_of_bounds_is_named(idle: System, name: str, value: Any) -> None:
    document = tomllib.loads(idle.config.read_text())
    assert name in _fault(idle, _changed(document, name, value))


@pytest.mark.parametrize("name", ["nonsense", "sallyport.nonsense", "gateway.nonsense", "enrolment.rate.nonsense"])
def test_a_setting_that_does_not_exist_is_named(idle: System, name: str) -> None:
    told = _fault(idle, _changed(tomllib.loads(idle.config.read_text()), name, 1))
    assert "setting_unknown" in told
    assert "'nonsense'" in told
    assert name.rpartition(".")[0] in told


def test_what_is_not_toml_is_told_with_its_line(idle: System) -> None:
    path = idle.folder / "wrong.toml"
    path.write_text("[sallyport]\ntrust_domain = \n")
    told = idle.run("serve", "--config", str(path), expect=1).err
    assert "line 2" in told
    assert str(path) in told


def test_a_file_that_is_not_there_is_told(idle: System) -> None:
    told = idle.run("serve", "--config", "/nowhere/sallyport.toml", expect=1).err
    assert "file_unreadable (/nowhere/sallyport.toml)" in told
    assert "what to do: " in told


def test_serve_itself_stops_at_a_wrong_setting(idle: System) -> None:
    path = _write(idle, _changed(tomllib.loads(idle.config.read_text()), "api.port", "8445"))
    told = fresh("serve", "--config", str(path)).expect(1).err
    assert "setting_invalid (api.port)" in told
    assert "what to do: " in told


def test_a_port_that_is_taken_is_told(idle: System, system: System) -> None:
    document = tomllib.loads(idle.config.read_text())
    path = _write(idle, _changed(document, "gateway.listener.port", system.ports["gateway"]))
    told = idle.run("serve", "--config", str(path), expect=1).err
    assert "setting_invalid (gateway.listener)" in told
    assert "Address already in use" in told


@pytest.mark.parametrize("key", ["server.key", "issuing.passphrase"])
def test_a_secret_that_others_may_read_stops_the_start(make_system: MakeSystem, key: str) -> None:
    system = make_system("unsafe")
    path = system.authority / key
    path.chmod(0o644)
    told = system.run("serve", "--config", str(system.config), expect=1).err
    assert "file_mode_unsafe" in told
    assert str(path) in told
    assert "chmod 600" in told


def _fault(system: System, document: dict[str, Any]) -> str:
    """What `doctor` says of these settings; it parses them as `serve` does."""
    path = _write(system, document)
    finding = system.commands.run("doctor", "--config", str(path), "--json").json[0]
    assert finding["check"] == "settings"
    assert (finding["grade"] == "bad") == bool(finding["remedy"])
    return str(finding["detail"])


def _changed(document: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy with one setting changed or added."""
    changed: dict[str, Any] = json.loads(json.dumps(document))
    *above, last = name.split(".")
    section = changed
    for part in above:
        section = section.setdefault(part, {})
    section[last] = value
    return changed


def _write(system: System, document: dict[str, Any]) -> Path:
    path = system.folder / "wrong.toml"
    path.write_text("\n".join(_lines(document)) + "\n")
    return path


def _lines(value: dict[str, Any], above: str = "") -> Iterator[str]:
    """TOML with dotted keys; a JSON string is a TOML one."""
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _lines(item, f"{above}{name}.")
        else:
            yield f"{above}{name} = {json.dumps(item)}"


def _digest(folder: Path) -> str:
    """Of every file's path, mode and content."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(f"{path} {path.stat().st_mode}".encode())
        total.update(path.read_bytes() if path.is_file() else b"")
    return total.hexdigest()
