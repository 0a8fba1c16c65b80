"""The command's entry: mounts each package's own `cli.py`, loaded only when its command is called.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from foundation.faults import Fault
from foundation.reasons import Reason

_OURS = ("foundation", "pki", "policies", "gateway", "agent")
# command → (module of the package's typer app, what `sallyport --help` says)
COMMANDS = {
    "init": ("gateway.cli", "init", "Make an authority and a commented sallyport.toml."),
    "join": ("gateway.cli", "join", "Make this machine a gateway of an authority elsewhere."),
    "recover": ("gateway.cli", "recover", "Make a restored authority safe to serve."),
    "serve": ("gateway.cli", "serve", "Run authority and gateway, or one of them."),
    "reload": ("gateway.process_cli", "reload", "Have the running server read certificates and settings anew."),
    "upgrade": ("gateway.process_cli", "upgrade", "Have the running server go on with the installed code."),
    "doctor": ("gateway.cli", "doctor", "Say what is wrong with this machine or configuration."),
    "explain": ("gateway.cli", "explain", "Say why a request was allowed or denied."),
    "top": ("gateway.top_cli", "top", "Watch a gateway: streams, rates, refusals, cuts."),
    "upstream": ("gateway.upstreams.cli", "", "The pools that routes lead to: list, keys."),
    "node": ("agent.cli", "", "This machine as a node: enrol, renew, status, health, call, firewall."),
    "agent": ("agent.run_cli", "", "This machine's agent: run, status."),
    "inventory": ("pki.cli", "inventory", "Nodes: list, show, add, import, revoke."),
    "token": ("pki.cli", "token", "Enrolment tokens."),
    "cert": ("pki.cli", "cert", "Certificates: list, show."),
    "operator": ("pki.operator_cli", "", "Operators' certificates: issue, renew."),
    "ca": ("pki.ca_cli", "", "The issuing CA: renew, by the root's offline key."),
    "access": ("policies.access.cli", "", "Who can reach what, and why: of a draft or of what is enforced."),
    "policy": ("policies.cli", "", "The policy workspace: check, test, build, publish, export."),
    "audit": ("foundation.audit.cli", "", "The audit log: verify, export."),
}


class _Lazy(TyperGroup):
    """A group that imports a package when one of its commands is called, and not before."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = get_command(getattr(_load(module), attribute or "app"))
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


def _load(module: str) -> Any:
    """The package's module. Raises `Fault(EXTRA_MISSING)` where what it stands on is not installed: a node needs less
    than a server."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _OURS:
            raise
        extra = "agent" if module.startswith("agent.") else "server"
        detail = f"{missing} is not installed: pip install 'sallyport[{extra}]'"
        raise Fault(Reason.EXTRA_MISSING, detail) from error


# Rich help would import every package to print one line of each; rich tracebacks could show a secret among the locals.
app = typer.Typer(cls=_Lazy, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def _root() -> None:
    """Zero-trust gateway and PKI for fleets of edge nodes with TPM 2.0."""


def main() -> None:
    """Run the command line; a fault is told with what to do about it."""
    try:
        app(prog_name="sallyport")
    except Fault as fault:
        sys.stderr.write(f"sallyport: {fault}\n  what to do: {fault.reason.remedy}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
