"""The `[policy]` section: which engine decides, and the bounds of compiling, evaluating and remembering."""

from __future__ import annotations

from dataclasses import dataclass, field

from foundation.fields import Fields

_MIB = 1 << 20
ENGINES = ("wasm", "opa")


@dataclass(frozen=True, slots=True)
class CompileSettings:
    """Bounds of one compilation. Times in seconds, sizes in bytes. `opa` is the binary; `memory` bounds its address
    space, which for a Go program is about a gigabyte more than what it uses."""

    opa: str = "opa"
    timeout: float = 10.0
    memory: int = 3 << 30
    max_source: int = _MIB
    max_files: int = 256
    max_data: int = 16 * _MIB
    max_nesting: int = 64

    @classmethod
    def parse(cls, fields: Fields) -> CompileSettings:
        settings = cls(
            opa=fields.text("opa", "opa"),
            timeout=fields.duration("timeout", "10s"),
            memory=fields.size("memory", "3GiB"),
            max_source=fields.size("max_source", "1MiB"),
            max_files=fields.integer("max_files", 256, least=1, most=10_000),
            max_data=fields.size("max_data", "16MiB"),
            max_nesting=fields.integer("max_nesting", 64, least=8, most=256),
        )
        fields.finish()
        return settings


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Bounds of the decision cache. `bytes` counts keys and answers by estimate."""

    entries: int = 65_536
    bytes: int = 64 * _MIB

    @classmethod
    def parse(cls, fields: Fields) -> CacheSettings:
        settings = cls(
            entries=fields.integer("entries", 65_536, least=0, most=16_777_216),
            bytes=fields.size("bytes", "64MiB"),
        )
        fields.finish()
        return settings


@dataclass(frozen=True, slots=True)
class SlowSettings:
    """What the embedded engine does with decisions that take long. `budget`, in seconds of processor time, is what an
    evaluation may take on the event loop; a route that is above it is decided in `threads` of their own, before which
    `waiting` may wait: what is beyond is denied."""

    budget: float = 0.002
    threads: int = 2
    waiting: int = 256

    @classmethod
    def parse(cls, fields: Fields) -> SlowSettings:
        settings = cls(
            budget=fields.duration("budget", "2ms"),
            threads=fields.integer("threads", 2, least=1, most=64),
            waiting=fields.integer("waiting", 256, least=0, most=65_536),
        )
        fields.finish()
        return settings


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The OPA server of engine `opa`. It must be ours alone: policy is pushed to it. `token_file` holds its bearer
    token when it asks for one; `ca_file` verifies it when `tls` (the system's roots when empty)."""

    host: str = "127.0.0.1"
    port: int = 8181
    tls: bool = False
    ca_file: str = ""
    token_file: str = ""

    @classmethod
    def parse(cls, fields: Fields) -> ServerSettings:
        settings = cls(
            host=fields.text("host", "127.0.0.1", max_length=253),
            port=fields.integer("port", 8181, least=1, most=65_535),
            tls=fields.flag("tls", False),
            ca_file=fields.text("ca_file", ""),
            token_file=fields.text("token_file", ""),
        )
        fields.finish()
        return settings


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """`engine` is `wasm` (embedded) or `opa` (a server). `decision_timeout` is in seconds: a decision that takes longer
    is a denial. `memory` bounds one embedded engine, in bytes."""

    engine: str = "wasm"
    decision_timeout: float = 0.1
    memory: int = 64 * _MIB
    compile: CompileSettings = field(default_factory=CompileSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    slow: SlowSettings = field(default_factory=SlowSettings)
    server: ServerSettings = field(default_factory=ServerSettings)

    @classmethod
    def parse(cls, fields: Fields) -> PolicySettings:
        settings = cls(
            engine=fields.one_of("engine", ENGINES, "wasm"),
            decision_timeout=fields.duration("decision_timeout", "100ms"),
            memory=fields.size("memory", "64MiB"),
            compile=CompileSettings.parse(fields.section("compile", optional=True)),
            cache=CacheSettings.parse(fields.section("cache", optional=True)),
            slow=SlowSettings.parse(fields.section("slow", optional=True)),
            server=ServerSettings.parse(fields.section("opa", optional=True)),
        )
        if settings.decision_timeout <= 0:
            raise fields.fault("decision_timeout", "expected more than 0ms")
        if settings.memory < 8 * _MIB:
            raise fields.fault("memory", "expected at least 8MiB")
        fields.finish()
        return settings
