"""Settings of the section `enrolment`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from foundation.fields import Fields
from foundation.identifiers import SpiffeId
from foundation.identity import AttestationClass
from foundation.wire.enrolment import PCR_BANKS, PcrSelection
from foundation.wire.reattestation import MAX_INTERVAL_SECONDS

CLASSES = (AttestationClass.HARDWARE.value, AttestationClass.VIRTUAL.value)
MAX_SESSION_SECONDS = 60.0
FIRMWARE_PCRS = PcrSelection("sha256", tuple(range(8)))  # TCG PC Client PFP §2.3.4
_LEAST_INTERVALS = 3  # the nonce's age, the wait for the next quote, and one that was lost
_KINDS = ("node", "gateway", "service")


@dataclass(frozen=True, slots=True)
class RateSettings:
    """How many first or second messages one address may send: `burst` at once, `per_minute` in the long run."""

    burst: int = 20
    per_minute: int = 60

    @classmethod
    def parse(cls, fields: Fields) -> RateSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(
            burst=fields.integer("burst", 20, least=1, most=100_000),
            per_minute=fields.integer("per_minute", 60, least=1, most=1_000_000),
        )
        fields.finish()
        return settings


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """Continuous re-attestation. `interval` is how often, in seconds, a node pushes a quote; `holds` how long, in
    seconds from the issue of its nonce, a quote that passed holds: after that, silence has ended trust in the node."""

    interval: float = 60.0
    holds: float = 300.0

    @classmethod
    def parse(cls, fields: Fields) -> RoundSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`."""
        settings = cls(interval=fields.duration("interval", "60s"), holds=fields.duration("holds", "5m"))
        if not 1 <= settings.interval <= MAX_INTERVAL_SECONDS:
            raise fields.fault("interval", f"expected from 1s to {MAX_INTERVAL_SECONDS}s")
        # A nonce is an interval old when it is used, and the next quote is due an interval later.
        if settings.holds < _LEAST_INTERVALS * settings.interval:
            raise fields.fault("holds", f"expected at least {_LEAST_INTERVALS} times the interval")
        fields.finish()
        return settings


@dataclass(frozen=True, slots=True)
class EnrolmentSettings:
    """What it takes to enrol. `production` is the installation's profile, not a field of this section. `host` and
    `port` are the listener's.

    `classes` are the classes of TPM that are let in; production leaves `hardware` alone. `without_tpm` names who may
    enrol with attestation `none`, as `<kind>/<name>`, where the name may end with `*`; in production nobody may.
    `pcrs` is what is quoted. `attested_for` bounds, in seconds, how long the attestation of an enrolment or a renewal
    holds; 0 leaves it to the certificate's life. Once an identity has begun continuous re-attestation, `attestation`
    bounds both instead. `roots` and `virtual_roots` are folders of PEM files: makers of hardware TPMs, and of emulated
    ones. `reference_values` is a folder of `<class>.json` files, where a node's class is its label `class`, or
    `tier-<n>`, or `default`."""

    production: bool = False
    host: str = "0.0.0.0"  # noqa: S104  # nodes come from anywhere; the listener serves nothing but enrolment
    port: int = 8444
    classes: tuple[str, ...] = ("hardware",)
    without_tpm: tuple[str, ...] = ()
    pcrs: PcrSelection = FIRMWARE_PCRS
    session: float = MAX_SESSION_SECONDS
    attested_for: float = 0.0
    rate: RateSettings = field(default_factory=RateSettings)
    attestation: RoundSettings = field(default_factory=RoundSettings)
    roots: Path | None = None
    virtual_roots: Path | None = None
    reference_values: Path | None = None

    @classmethod
    def parse(cls, fields: Fields, *, production: bool) -> EnrolmentSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)`, also for what production forbids."""
        settings = cls(
            production=production,
            host=fields.text("host", "0.0.0.0"),  # noqa: S104  # as above
            port=fields.integer("port", 8444, most=65535),
            classes=_classes(fields, production),
            without_tpm=_without_tpm(fields, production),
            pcrs=_pcrs(fields.section("pcrs", optional=True)),
            session=_at_most(fields, "session", MAX_SESSION_SECONDS),
            attested_for=fields.duration("attested_for", "0s"),
            rate=RateSettings.parse(fields.section("rate", optional=True)),
            attestation=RoundSettings.parse(fields.section("attestation", optional=True)),
            roots=_path(fields, "roots"),
            virtual_roots=_path(fields, "virtual_roots"),
            reference_values=_path(fields, "reference_values"),
        )
        fields.finish()
        return settings

    def allows_without_tpm(self, identity: SpiffeId) -> bool:
        """Whether `identity` may enrol with attestation `none`."""
        if self.production:
            return False
        own = f"{identity.kind.value}/{identity.name}"
        return any(own == entry or (entry.endswith("*") and own.startswith(entry[:-1])) for entry in self.without_tpm)


def _classes(fields: Fields, production: bool) -> tuple[str, ...]:
    classes = fields.texts("classes", ("hardware",), most=len(CLASSES))
    allowed = CLASSES[:1] if production else CLASSES
    if not classes or not set(classes) <= set(allowed):
        raise fields.fault("classes", f"expected some of {', '.join(allowed)}{' in production' * production}")
    return classes


def _without_tpm(fields: Fields, production: bool) -> tuple[str, ...]:
    entries = fields.texts("without_tpm", ())
    if entries and production:
        raise fields.fault("without_tpm", "in production every node attests by its TPM")
    for entry in entries:
        kind, _, name = entry.partition("/")
        if kind not in _KINDS or not name:
            raise fields.fault("without_tpm", "expected node/<name>, gateway/<name> or service/<name>, or <name>*")
    return entries


def _pcrs(fields: Fields) -> PcrSelection:
    bank = fields.one_of("bank", PCR_BANKS, "sha256")
    indices = fields.integers("indices", least=0, most=23, count=24) if fields.has("indices") else tuple(range(8))
    if not indices or list(indices) != sorted(set(indices)):
        raise fields.fault("indices", "expected rising PCR indices, at least one")
    fields.finish()
    return PcrSelection(bank, indices)


def _at_most(fields: Fields, name: str, most: float) -> float:
    seconds = fields.duration(name, f"{most:.0f}s")
    if not 1 <= seconds <= most:
        raise fields.fault(name, f"expected from 1s to {most:.0f}s")
    return seconds


def _path(fields: Fields, name: str) -> Path | None:
    return Path(fields.text(name)) if fields.has(name) else None
