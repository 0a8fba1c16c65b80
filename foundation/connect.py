"""How commands reach an API: the same options on each, and an `ApiClient` from them.

By default over the Unix socket that the settings name, as this machine's root; with `--server` over TLS with a client
certificate, as an operator from anywhere.
"""

from __future__ import annotations

import functools
import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

from foundation.client import ApiClient, Remote
from foundation.faults import Fault
from foundation.fields import Fields
from foundation.reasons import Reason
from foundation.tls import KeyPair

DEFAULT_CONFIG = Path("/var/lib/sallyport/sallyport.toml")
DEFAULT_SOCKET = "/run/sallyport/sallyport.sock"
P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H")
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "config": (Annotated[Path, typer.Option(help="The settings, which name the socket.")], DEFAULT_CONFIG),
    "socket": (Annotated[Path | None, typer.Option(help="The API's Unix socket.")], None),
    "server": (Annotated[str, typer.Option(help="The API's listener, host:port, instead of the socket.")], ""),
    "cert": (Annotated[Path | None, typer.Option(help="With --server: the client certificate (PEM).")], None),
    "key": (Annotated[Path | None, typer.Option(help="With --server: its key (PEM, mode 0600).")], None),
    "ca": (Annotated[Path | None, typer.Option(help="With --server: the authority's root (PEM).")], None),
}


def connected(command: Callable[Concatenate[ApiClient, P], R]) -> Callable[..., R]:
    """A command that is handed an `ApiClient` first and has the options that lead to it."""
    return _with_options(command, lambda connect: connect())


def connectable(command: Callable[Concatenate[Callable[[], ApiClient], P], R]) -> Callable[..., R]:
    """As `connected`, for a command that can do without an API: it is handed what makes the client."""
    return _with_options(command, lambda connect: connect)


def _with_options(
    command: Callable[Concatenate[H, P], R], handed: Callable[[Callable[[], ApiClient]], H]
) -> Callable[..., R]:
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> R:
        chosen = {name: given.pop(name) for name in _OPTIONS}
        return command(handed(lambda: client_of(**chosen)), *args, **given)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in _OPTIONS.items()
    ]
    named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature(named + added)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in named + added}
    return run


def client_of(
    *, config: Path, socket: Path | None, server: str, cert: Path | None, key: Path | None, ca: Path | None
) -> ApiClient:
    """Raises `Fault(SETTING_INVALID | FILE_UNREADABLE)`."""
    if not server:
        return ApiClient(socket or _configured_socket(config))
    if cert is None or key is None or ca is None:
        raise Fault(Reason.SETTING_INVALID, "--server goes with --cert, --key and --ca", field="server")
    return ApiClient(Remote.parse(server, KeyPair(cert, key), ca))


def _configured_socket(config: Path) -> Path:
    if config == DEFAULT_CONFIG and not config.exists():
        return Path(DEFAULT_SOCKET)
    try:
        document = tomllib.loads(config.read_text("utf-8"))
    except OSError as error:
        raise Fault(Reason.FILE_UNREADABLE, error.strerror or "unreadable", field=str(config)) from error
    except ValueError as error:
        raise Fault(Reason.SETTING_INVALID, str(error), field=str(config)) from error
    api = Fields(document, "", Reason.SETTING_INVALID).section("api", optional=True)
    return Path(api.text("socket", DEFAULT_SOCKET))
