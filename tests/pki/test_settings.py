"""The section `authority`."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from pki.settings import AuthoritySettings


def parse(**value: object) -> AuthoritySettings:
    fields = Fields(value, "authority", Reason.SETTING_INVALID, unknown=Reason.SETTING_UNKNOWN)
    return AuthoritySettings.parse(fields)


def test_defaults_need_a_trust_domain_alone() -> None:
    settings = parse(trust_domain="fleet.example")
    assert settings == AuthoritySettings("fleet.example")
    assert settings.issuing_passphrase_file == Path("/var/lib/sallyport/authority/issuing.passphrase")
    assert str(settings.server_identity) == "spiffe://fleet.example/gateway/sallyport"


def test_names_are_spelled_in_one_way() -> None:
    settings = parse(trust_domain="a", server_names=["GW.Example", "0:0:0:0:0:0:0:1", "10.0.0.1"])
    assert settings.server_names == ("gw.example", "::1", "10.0.0.1")


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, "authority.trust_domain"),
        ({"trust_domain": "Upper"}, "authority.trust_domain"),
        ({"trust_domain": "a", "server_name": "A B"}, "authority.server_name"),
        ({"trust_domain": "a", "passphrase_credential": "../x"}, "authority.passphrase_credential"),
        ({"trust_domain": "a", "lifetimes": {"node": "48h"}}, "authority.lifetimes.node"),
        ({"trust_domain": "a", "passphrase": "secret"}, "authority"),
    ],
)
def test_what_is_refused(value: dict[str, object], field: str) -> None:
    with pytest.raises(Fault) as caught:
        parse(**value)
    assert caught.value.field == field


def test_a_credential_comes_from_the_folder_that_systemd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse(trust_domain="a", passphrase_credential="ca-passphrase")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(Fault) as caught:
        settings.read_passphrase()
    assert caught.value.reason is Reason.FILE_UNREADABLE
    (tmp_path / "ca-passphrase").write_bytes(b"words\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert settings.read_passphrase() == b"words"
