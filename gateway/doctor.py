"""What is wrong with this machine or configuration, and what to do. Each check is a function that yields findings."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import shutil
import stat
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from foundation.clock import SystemClock
from foundation.faults import Fault
from foundation.hotstate import HotStateSettings, open_hot_state
from gateway.configuration import Configuration, Role, SystemSettings, read_configuration
from gateway.health import HealthSettings

LOW_DISK_BYTES = 1 << 30
ANSWER_SECONDS = 2.0
SOON = datetime.timedelta(days=30)
_SECRETS = (
    "issuing.key",
    "issuing.passphrase",
    "root.key",
    "root.passphrase",
    "policy.key",
    "server.key",
    "operator.key",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `grade` is `good`, `warning` or `bad`."""

    check: str
    grade: str
    detail: str
    remedy: str = ""


Check = Callable[[Configuration], Iterator[Finding]]


def examine(path: Path, parse: Callable[[Configuration], object]) -> list[Finding]:
    """Every finding about the settings in `path` and what they name. `parse` judges the settings of all parts and
    raises `Fault`."""
    try:
        configuration = read_configuration(path)
        parse(configuration)
    except Fault as fault:
        return [Finding("settings", "bad", str(fault), fault.reason.remedy)]
    findings = [Finding("settings", "good", str(configuration.path))]
    role = SystemSettings.parse(configuration.section("sallyport")).role
    for check in _OF_A_GATEWAY if role is Role.GATEWAY else _OF_AN_AUTHORITY:
        findings += check(configuration)
    return findings


def _folder(configuration: Configuration) -> Path:
    return Path(configuration.section("authority").text("folder", "/var/lib/sallyport/authority"))


def _programs(_: Configuration) -> Iterator[Finding]:
    opa = shutil.which("opa")
    if opa:
        yield Finding("opa", "good", opa)
    else:
        yield Finding("opa", "bad", "not on PATH", "install it: policy is compiled by it when a revision is built")


def _secrets(configuration: Configuration) -> Iterator[Finding]:
    folder = _folder(configuration)
    for name in _SECRETS:
        path = folder / name
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding("secrets", "bad", f"others may read {path}", f"chmod 600 {path}")
    for name in ("root.key", "policy.key"):
        if (folder / name).exists():
            remedy = "keep it on a machine that serves nothing" if name == "policy.key" else "take it offline"
            yield Finding("secrets", "warning", f"{folder / name} is on this machine", remedy)
    if not os.access(folder / "issuing.key", os.R_OK):
        yield Finding(
            "secrets", "bad", f"{folder / 'issuing.key'} cannot be read", "run `sallyport init`, or as its user"
        )


def _certificates(configuration: Configuration) -> Iterator[Finding]:
    folder = _folder(configuration)
    remedies = {
        "root": "make a new root and enrol the fleet anew",
        "issuing": "run `sallyport ca renew` where the root's key is",
        "server": "start `sallyport serve`: it renews its own",
        "operator": "`sallyport serve` runs? then ask another operator, or use the Unix socket as root",
    }
    for name, remedy in remedies.items():
        path = folder / f"{name}.pem"
        if not path.exists():
            continue
        end = x509.load_pem_x509_certificates(path.read_bytes())[0].not_valid_after_utc
        left = end - datetime.datetime.now(datetime.UTC)
        lasting = name in {"root", "issuing"}
        grade = "bad" if left < datetime.timedelta(0) else "warning" if lasting and left < SOON else "good"
        yield Finding(
            "certificates", grade, f"{name} until {end:%Y-%m-%d %H:%M} UTC", "" if grade == "good" else remedy
        )


def _identity(configuration: Configuration) -> Iterator[Finding]:
    """The certificate of a gateway whose authority is elsewhere."""
    path = Path(configuration.section("upstream_authority").text("certificate"))
    try:
        leaf = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        yield Finding("identity", "bad", f"{path} holds no certificate", "run `sallyport join`")
        return
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Finding("identity", "bad", f"others may read {path}", f"chmod 600 {path}")
    now, end = datetime.datetime.now(datetime.UTC), leaf.not_valid_after_utc
    if now < leaf.not_valid_before_utc:
        yield Finding("identity", "bad", "this machine's clock is before the certificate", "set the clock by NTP")
    elif now >= end:
        remedy = "an ended certificate cannot renew itself: join again with a new token"
        yield Finding("identity", "bad", f"the certificate ended {end:%Y-%m-%d %H:%M} UTC", remedy)
    else:
        yield Finding("identity", "good", f"until {end:%Y-%m-%d %H:%M} UTC")


def _makers(configuration: Configuration) -> Iterator[Finding]:
    section = configuration.section("enrolment")
    found = 0
    for name in ("roots", "virtual_roots"):
        folder = Path(section.text(name, "")) if section.has(name) else None
        count = len(list(folder.glob("*.pem"))) if folder is not None and folder.is_dir() else 0
        found += count
        yield Finding("makers", "good", f"{count} pinned in {name}")
    if not found:
        yield Finding(
            "makers", "bad", "no TPM maker's root is pinned: no TPM can enrol", "put PEM files into the folder `roots`"
        )


def _production(configuration: Configuration) -> Iterator[Finding]:
    """What the production profile forces, whether it is on or not."""
    settings, section = SystemSettings.parse(configuration.section("sallyport")), configuration.section("enrolment")
    lacks = {
        "profile is not `production`": not settings.is_production,
        "virtual TPMs may enrol": "virtual" in section.texts("classes", ("hardware",)),
        "some may enrol without a TPM": bool(section.texts("without_tpm", ())),
        "there are no reference values": not section.has("reference_values"),
    }
    for lack, holds in lacks.items():
        if holds:
            yield Finding("production", "warning", lack, "change it before real nodes enrol")


def _disk(configuration: Configuration) -> Iterator[Finding]:
    state = SystemSettings.parse(configuration.section("sallyport")).state
    free = shutil.disk_usage(state if state.exists() else "/").free
    grade = "good" if free > LOW_DISK_BYTES else "bad"
    yield Finding(
        "disk", grade, f"{free >> 20} MiB free at {state}", "" if grade == "good" else "free some: logs refuse"
    )


def _hot_state(configuration: Configuration) -> Iterator[Finding]:
    """The Redis server, where there is one."""
    settings = HotStateSettings.parse(configuration.section("hotstate"))
    if settings.redis is None:
        return
    where = f"Redis at {settings.redis.place}"
    try:
        asyncio.run(_ask_hot_state(settings))
    except Fault as fault:
        yield Finding("hot state", "bad", f"{where}: {fault.detail or fault.internal}", fault.reason.remedy)
    else:
        yield Finding("hot state", "good", where)


async def _ask_hot_state(settings: HotStateSettings) -> None:
    hot = open_hot_state(settings, SystemClock())
    try:
        await hot.generation()
    finally:
        await hot.close()


def _running(configuration: Configuration) -> Iterator[Finding]:
    """What a gateway that runs by these settings says of itself; nothing when none does."""
    settings = HealthSettings.parse(configuration.section("health"))
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        page = f"http://{_bracketed(settings.host)}:{settings.port}/readyz"
        with direct.open(page, timeout=ANSWER_SECONDS) as answer:
            told = json.loads(answer.read(1 << 20))
    except (OSError, ValueError):
        return
    for who, text in told.get("notes", {}).items():
        yield Finding("running", "warning", f"{who}: {text}", 'see docs/operations.md, "When a cut is late"')


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


_ANYWHERE: tuple[Check, ...] = (_hot_state, _disk, _running)
_OF_AN_AUTHORITY: tuple[Check, ...] = (_programs, _secrets, _certificates, _makers, _production, *_ANYWHERE)
_OF_A_GATEWAY: tuple[Check, ...] = (_identity, *_ANYWHERE)
