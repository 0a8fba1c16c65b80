"""The agent runs on what its own extras install: nothing of the server's is needed, and what is missing is named.

A process is given Python's own modules, ours, and those of the distributions that `pyproject.toml` lists for a node, no
others.
"""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest

import agent

ROOT = Path(__file__).resolve().parents[2]
_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")
_EXTRA = re.compile(r"extra\s*==")
_ONLY = """
import sys
ALLOWED = set({allowed!r})

class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Only())
"""


def canonical(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: Iterable[str]) -> set[str]:
    """The distributions that these requirements install, with all that they require."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        match = _REQUIREMENT.match(waiting.pop())
        assert match
        name = canonical(match[0])
        if name in found:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another Python or system
            continue
        found.add(name)
        waiting += [each for each in required if not _EXTRA.search(each)]
    return found


def modules_of(*extras: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [
        *project["dependencies"],
        *(each for extra in extras for each in project["optional-dependencies"][extra]),
    ]
    distributions = closure(requirements)
    theirs = [
        module
        for module, names in metadata.packages_distributions().items()
        if any(canonical(name) in distributions for name in names)
    ]
    ours = ("foundation", "pki", "policies", "gateway", "agent", "sallyport")
    return sorted({*theirs, *ours, *sys.stdlib_module_names, "__main__", "__editable___sallyport_0_1_0_finder"})


def run(program: str, *extras: str) -> subprocess.CompletedProcess[str]:
    code = _ONLY.format(allowed=modules_of(*extras)) + program
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def command(*words: str) -> str:
    return f"sys.argv = {['sallyport', *words]!r}\nimport sallyport\nsallyport.main()"


NAMES = [module.name for module in pkgutil.iter_modules(agent.__path__, "agent.")]


@pytest.mark.parametrize("extras", [("agent", "local"), ("agent",), ()])
def test_every_module_of_the_agent_is_imported_without_the_servers_packages(extras: tuple[str, ...]) -> None:
    optional = {"agent.local_http"} if "local" not in extras else set()  # where programs ask for decisions
    optional |= {"agent.tpm_commands", "agent.tpm_sealing"} if not extras else set()  # for `agent.tpm` alone
    wanted = [name for name in NAMES if name not in optional]
    done = run(f"import importlib\nfor name in {wanted!r}: importlib.import_module(name)", *extras)
    assert done.returncode == 0, done.stderr


def test_the_nodes_command_runs_without_the_servers_packages() -> None:
    done = run(command("node", "--help"), "agent")
    assert done.returncode == 0, done.stderr
    assert "enrol" in done.stdout
    refused = run(command("node", "status", "--directory", "/nowhere"), "agent")
    assert (refused.returncode, "not_enrolled" in refused.stderr) == (1, True)


def test_what_is_the_servers_names_its_extra() -> None:
    done = run(command("serve", "--help"), "agent")
    assert done.returncode == 1
    assert "extra_missing" in done.stderr
    assert "pip install 'sallyport[server]'" in done.stderr


def test_the_server_runs_without_a_tpm_library() -> None:
    done = run(command("serve", "--help"), "server")
    assert done.returncode == 0, done.stderr


def test_a_package_that_no_extra_names_would_be_found_out() -> None:
    assert "aiohttp" not in modules_of("agent")
    assert run("import aiohttp", "agent").returncode != 0
    assert run("import aiohttp", "server").returncode == 0
