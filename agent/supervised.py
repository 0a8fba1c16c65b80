"""What the settings say of a supervised service, and what that means for its process: values from values."""

from __future__ import annotations

import codecs
import pwd
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.restarts import RestartPolicy
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.files import read_secret
from foundation.identifiers import check_name
from foundation.reasons import Reason

MAX_SERVICES = 32
MAX_ARGUMENTS = 128
MAX_LINE = 4096
"""Characters of a line of output that are kept; what is over is left out, and said so."""
_MAX_ENVIRONMENT_BYTES = 64 * 1024
_CUT = " […]"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """An entry of `[[agent.service]]`. `user` is whom it runs as, empty: as the agent; another needs an agent that may
    change users. `environment` is a file of `NAME=value` lines, mode 0600; the first line of the file `version` is told
    in reports. `stop` is how long it may take to end, in seconds. `memory` bounds its address space in bytes
    (RLIMIT_AS), `files` its open files (RLIMIT_NOFILE); 0 leaves them."""

    name: str
    command: tuple[str, ...]
    user: str = ""
    environment: Path | None = None
    version: Path | None = None
    directory: Path = Path("/")
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    stop: float = 10.0
    memory: int = 0
    files: int = 0

    @classmethod
    def parse(cls, fields: Fields) -> ServiceSettings:
        """Raises `Fault(SETTING_INVALID | SETTING_UNKNOWN)` naming the setting."""
        settings = cls(
            name=check_name(fields.text("name"), field=f"{fields.path}.name"),
            command=_command(fields),
            user=fields.text("user", "", max_length=32),
            environment=Path(fields.text("environment")) if fields.has("environment") else None,
            version=Path(fields.text("version")) if fields.has("version") else None,
            directory=Path(fields.text("directory", "/")),
            restart=_restart(fields),
            stop=fields.duration("stop", "10s"),
            memory=fields.size("memory", "0B"),
            files=fields.integer("files", 0, most=1 << 20),
        )
        fields.finish()
        return settings


def parse_services(fields: Fields) -> tuple[ServiceSettings, ...]:
    """The entries of `[[agent.service]]`, from the section `agent`. Raises `Fault(SETTING_INVALID | …_UNKNOWN)`."""
    services = fields.each("service", ServiceSettings.parse, most=MAX_SERVICES, optional=True)
    if len({each.name for each in services}) != len(services):
        raise fields.fault("service", "two services have one name")
    return services


def command_line(settings: ServiceSettings) -> tuple[str, ...]:
    """The argument list that starts it: setpriv and prlimit (util-linux) set what a process gets by its parent, then
    become it. Raises `Fault(SETTING_INVALID)` where one of them, or the user, is missing."""
    return (
        _tool("setpriv"),
        "--pdeathsig=KILL",
        "--no-new-privs",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        *_user(settings),
        "--",
        _tool("prlimit"),
        "--core=0",
        *_limits(settings),
        "--",
        *settings.command,
    )


def environment(settings: ServiceSettings) -> Mapping[str, str]:
    """What its process finds in its environment: nothing of the agent's. Raises
    `Fault(FILE_UNREADABLE | FILE_MODE_UNSAFE | SETTING_INVALID)`."""
    plain = {"PATH": _PATH, "LANG": "C.UTF-8"}
    if settings.environment is None:
        return plain
    raw = read_secret(settings.environment, max_bytes=_MAX_ENVIRONMENT_BYTES)
    return plain | parse_environment(raw, str(settings.environment))


def parse_environment(raw: bytes, where: str) -> dict[str, str]:
    """`NAME=value` lines; empty ones and those that begin with # are left out. Raises `Fault(SETTING_INVALID)`, which
    names the line and never its value."""
    found: dict[str, str] = {}
    for number, line in enumerate(raw.decode("utf-8", "replace").split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.isidentifier() or not name.isascii() or "\0" in value:
            raise Fault(Reason.SETTING_INVALID, f"line {number}: expected NAME=value", field=where)
        found[name] = value
    return found


class Lines:
    """Cuts output into lines of at most `MAX_LINE` characters of printable text, whatever the chunks; holds no more of
    a line that does not end."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self._is_cut = False

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that `chunk` ends."""
        *ended, rest = self._decoder.decode(chunk).split("\n")
        lines = [self._ended_by(piece) for piece in ended]
        self._extend(rest)
        return lines

    def end(self) -> list[str]:
        """What is left when the output is over."""
        self._extend(self._decoder.decode(b"", final=True))
        return [self._ended_by("")] if self._line else []

    def _extend(self, piece: str) -> None:
        room = MAX_LINE - len(self._line)
        self._is_cut = self._is_cut or len(piece) > room
        self._line += piece[:room]

    def _ended_by(self, piece: str) -> str:
        self._extend(piece)
        line, self._line = self._line.removesuffix("\r"), ""
        cut, self._is_cut = _CUT if self._is_cut else "", False
        return "".join(each if each.isprintable() or each == "\t" else "�" for each in line) + cut


def _command(fields: Fields) -> tuple[str, ...]:
    command = fields.texts("command", most=MAX_ARGUMENTS)
    if not command or not command[0].startswith("/") or any("\0" in word for word in command):
        raise fields.fault("command", "expected an argument list that begins with an absolute path")
    return command


def _restart(fields: Fields) -> RestartPolicy:
    policy = RestartPolicy(
        least=fields.duration("restart_least", "1s"),
        most=fields.duration("restart_most", "60s"),
        quiet=fields.duration("quiet", "60s"),
    )
    if not 0 < policy.least <= policy.most:
        raise fields.fault("restart_least", "expected more than 0 and at most restart_most")
    return policy


def _user(settings: ServiceSettings) -> tuple[str, ...]:
    if not settings.user:
        return ()
    try:
        user = pwd.getpwnam(settings.user)
    except KeyError:
        raise Fault(Reason.SETTING_INVALID, f"there is no user {settings.user!r}", field="agent.service.user") from None
    return (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups")


def _limits(settings: ServiceSettings) -> tuple[str, ...]:
    memory = (f"--as={settings.memory}",) if settings.memory else ()
    return memory + ((f"--nofile={settings.files}",) if settings.files else ())


def _tool(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise Fault(Reason.SETTING_INVALID, f"services need {name} (package util-linux)", field="agent.service")
    return found
