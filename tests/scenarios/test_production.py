"""The production profile: what it refuses, with which reason on the audit log, and what `doctor` says is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.system import MakeSystem, MakeTpm, System

VIRTUAL_TOO, HARDWARE = 'classes = ["hardware", "virtual"] ', 'classes = ["hardware"] '
DEVELOPMENT, PRODUCTION = 'profile = "development"', 'profile = "production"'


@pytest.fixture(scope="module")
def production(make_system: MakeSystem) -> Iterator[System]:
    system = make_system("production")
    system.edit(VIRTUAL_TOO, HARDWARE)
    system.edit(DEVELOPMENT, PRODUCTION)
    with system.running():
        yield system


def test_a_virtual_tpm_is_refused(production: System, make_tpm: MakeTpm) -> None:
    node = production.add_node("virtual", make_tpm("virtual"))
    assert "tpm_class_refused" in node.enrol(expect=1).err
    _is_refused_on_the_log(production, node.id, "tpm_class_refused")


def test_a_node_without_a_tpm_is_refused(production: System, make_tpm: MakeTpm) -> None:
    node = production.add_node("bare", make_tpm("bare"))
    node.write_settings(attestation="none")
    assert "attestation_required" in node.enrol(expect=1).err
    _is_refused_on_the_log(production, node.id, "attestation_required")


def _is_refused_on_the_log(system: System, node: str, reason: str) -> None:
    log = system.audited()
    assert (node, reason) in {(event["subject"], event["reason"]) for event in log if event["kind"] == "enrol.refused"}
    assert not [event for event in log if event["kind"] == "certificate.issued" and event["subject"] == node]


@pytest.mark.parametrize(
    ("before", "after", "setting"),
    [
        (HARDWARE, VIRTUAL_TOO, "enrolment.classes"),
        ("without_tpm = []", 'without_tpm = ["node/bare"]', "enrolment.without_tpm"),
    ],
)
def test_settings_that_production_forbids_stop_the_start(
    production: System, before: str, after: str, setting: str
) -> None:
    path = production.folder / "forbidden.toml"
    path.write_text(production.config.read_text().replace(before, after))
    told = production.run("serve", "--config", str(path), expect=1).err
    assert f"setting_invalid ({setting})" in told
    assert "production" in told


def test_doctor_names_what_production_lacks(production: System, make_system: MakeSystem) -> None:
    assert _lacks(production) == {"there are no reference values"}
    assert _lacks(make_system("development")) == {
        "profile is not `production`",
        "virtual TPMs may enrol",
        "there are no reference values",
    }


def _lacks(system: System) -> set[str]:
    found = system.run("doctor", "--config", str(system.config), "--json").json
    assert all(finding["remedy"] for finding in found if finding["grade"] != "good")
    return {finding["detail"] for finding in found if finding["check"] == "production"}
