"""Compiling: what comes out, and errors that name the file and line."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from policies import capabilities
from policies.builtins import BUILTINS
from policies.compile import compile_policy, policy_digest
from policies.settings import CompileSettings, PolicySettings
from tests.support.engines import GRANTS, SMALL, one, small

SETTINGS = CompileSettings()


def refused(rego: dict[str, bytes], data: Any = None, settings: CompileSettings = SETTINGS) -> Fault:
    with pytest.raises(Fault) as caught:
        compile_policy(rego, data or {}, settings)
    return caught.value


def test_a_policy_compiles_to_wasm_and_what_it_reads() -> None:
    policy = small()
    assert policy.wasm.startswith(b"\0asm")
    assert policy.reads == (
        ("identity", "labels", "barred"),
        ("identity", "roles"),
        ("identity", "verdict"),
        ("request", "path"),
        ("route",),
    )
    assert policy.digest == policy_digest(SMALL, GRANTS)


def test_tests_are_left_out() -> None:
    with_tests = {**SMALL, "main_test.rego": b"package sallyport\ntest_x if http.send({})"}
    assert compile_policy(with_tests, GRANTS, SETTINGS).digest == small().digest


@pytest.mark.parametrize(
    ("other_rego", "other_data"),
    [
        ({"x.rego": b"package x"}, {"a": 1}),
        ({"y.rego": b"package y"}, {"a": 1}),
        ({"x.rego": b"package y"}, {"a": 1.0}),
        ({"x.rego": b"package y"}, {"a": True}),
        ({"x.rego": b"package y"}, {"a": "1"}),
        ({"x.rego": b"package y"}, {"a": None}),
        ({"x.rego": b"package y"}, {}),
    ],
)
def test_the_digest_tells_code_and_types_of_data_apart(other_rego: dict[str, bytes], other_data: Any) -> None:
    assert policy_digest({"x.rego": b"package y"}, {"a": 1}) != policy_digest(other_rego, other_data)


def test_the_digest_knows_no_order() -> None:
    assert policy_digest({"a": b"1", "b": b"2"}, {"x": 1, "y": {"p": 1, "q": 2}}) == policy_digest(
        {"b": b"2", "a": b"1"}, {"y": {"q": 2, "p": 1}, "x": 1}
    )


def test_an_error_names_file_and_line() -> None:
    fault = refused({**SMALL, "custom/own.rego": b"package sallyport.custom\n\ndeny if {\n\tx := \n}\n"})
    assert fault.reason is Reason.POLICY_COMPILE
    assert fault.field.startswith("custom/own.rego:")


def test_an_undefined_function_is_an_error_of_its_line() -> None:
    fault = refused(one("decision := own_function(1)"))
    assert (fault.reason, fault.field) == (Reason.POLICY_COMPILE, "one.rego:2")


@pytest.mark.parametrize(
    "call",
    [
        'http.send({"method": "get", "url": "http://127.0.0.1"})',
        "time.now_ns()",
        'net.lookup_ip_addr("localhost")',
        'rand.intn("a", 10)',
        'uuid.rfc4122("a")',
        "opa.runtime()",
        'semver.compare("1.0.0", "1.0.1")',
        'io.jwt.decode_verify("", {})',
    ],
)
def test_a_builtin_that_is_not_on_the_list_is_refused(call: str) -> None:
    fault = refused(one(f"decision := {call}"))
    assert (fault.reason, fault.field) == (Reason.POLICY_BUILTIN, "one.rego:2")
    assert call.partition("(")[0] in fault.detail


def test_both_entrypoints_must_be_there() -> None:
    assert refused({"a.rego": b"package sallyport\ndecision := {}\n"}).reason is Reason.POLICY_COMPILE


def test_template_strings_are_refused() -> None:
    assert refused(one('decision := $"{data.x}"')).reason in {Reason.POLICY_COMPILE, Reason.POLICY_BUILTIN}


def test_code_and_data_do_not_share_a_root() -> None:
    assert refused(one("decision := {}"), {"sallyport": {"decision": {}}}).reason is Reason.POLICY_DATA_INVALID


@pytest.mark.parametrize(
    "path", ["../x.rego", "/x.rego", "a//b.rego", "a/../b.rego", "x.json", "-x.rego", ".rego", "a\n.rego"]
)
def test_a_path_stays_in_its_folder(path: str) -> None:
    assert refused({**SMALL, path: b"package x"}).reason is Reason.POLICY_COMPILE


@pytest.mark.parametrize("data", [{"a": {1: 2}}, {"a": float("nan")}, {"a": b"x"}, {"a": ("x",)}, {"a": "\ud800"}])
def test_data_is_json(data: Any) -> None:
    assert refused(dict(SMALL), data).reason is Reason.POLICY_DATA_INVALID


def test_a_compiler_that_is_not_there_is_named() -> None:
    fault = refused(dict(SMALL), settings=CompileSettings(opa="/nonexistent/opa"))
    assert (fault.reason, fault.field) == (Reason.SETTING_INVALID, "policy.compile.opa")


def test_the_capabilities_file_is_fresh() -> None:
    assert capabilities.PATH.read_text() == capabilities.render()


def test_every_builtin_of_the_host_is_allowed_and_provided() -> None:
    assert set(BUILTINS) == capabilities.HOST


def test_settings_have_defaults_and_refuse_what_they_do_not_know() -> None:
    assert PolicySettings.parse(Fields({}, "policy", Reason.SETTING_INVALID)) == PolicySettings()
    given = {
        "engine": "opa",
        "decision_timeout": "20ms",
        "compile": {"timeout": "3s"},
        "cache": {"entries": 5},
        "opa": {"port": 9000},
    }
    settings = PolicySettings.parse(Fields(given, "policy", Reason.SETTING_INVALID))
    assert (settings.engine, settings.decision_timeout, settings.cache.entries) == ("opa", 0.02, 5)
    assert (settings.compile.timeout, settings.server.port) == (3.0, 9000)
    for wrong in ({"engine": "regopy"}, {"decision_timeout": "0ms"}, {"memory": "1MiB"}, {"colour": "red"}):
        with pytest.raises(Fault):
            PolicySettings.parse(Fields(wrong, "policy", Reason.SETTING_INVALID))


def test_importing_the_engine_side_needs_no_event_loop_and_starts_no_thread() -> None:
    code = "import policies.loading, threading; raise SystemExit(threading.active_count() - 1)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
