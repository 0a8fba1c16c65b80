"""The command's entry: mounts each package's own `cli.py`, loaded only when its command is called.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

import importlib
from typing import Any

import click
import typer
from typer.main import get_command

# command → (module of the package's typer app, what `sallyport --help` says)
_COMMANDS = {
    "init": ("gateway.cli", "init", "Make an authority and a commented sallyport.toml."),
    "serve": ("gateway.cli", "serve", "Run authority and gateway, or one of them."),
    "doctor": ("gateway.cli", "doctor", "Say what is wrong with this machine or configuration."),
    "explain": ("gateway.cli", "explain", "Say why a request was allowed or denied."),
    "node": ("agent.cli", "", "This machine as a node: enrol, renew, status, call."),
    "inventory": ("pki.cli", "inventory", "Nodes: list, show, add, import, revoke."),
    "token": ("pki.cli", "token", "Enrolment tokens."),
    "cert": ("pki.cli", "cert", "Certificates: list, show."),
    "policy": ("policies.cli", "", "The policy workspace: check, test, build, publish."),
    "audit": ("foundation.audit.cli", "", "The audit log: verify, export."),
}


class _Lazy(click.Group):
    """A group that imports a package when one of its commands is called, and not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        app: Any = getattr(importlib.import_module(module), attribute or "app")
        command = get_command(app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


def main() -> None:
    """Run the command line."""
    _Lazy(name="sallyport", help=__doc__.split("\n")[0] if __doc__ else "")()
