"""From policy text to what an engine loads, by OPA's own compiler.

Policy text is hostile input. Its size and nesting are checked before anything reads it; OPA then runs in a process of
its own with bounds on processor time, address space and output, is killed with all its children when its time is up,
and may use only the builtins and the (empty) list of hosts that `capabilities.json` names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foundation.faults import Fault
from foundation.reasons import Reason
from policies.engine import DECISION_ENTRYPOINT, EXPLAIN_ENTRYPOINT, CompiledPolicy
from policies.projection import ALL_DATA, EVERYTHING, DataReads, Reads, data_reads_of, reads_of
from policies.settings import CompileSettings

CAPABILITIES = Path(__file__).with_name("capabilities.json")
MAX_DATA_DEPTH = 32
_MAX_OUTPUT = 64 << 20
_MAX_WORDS = 65_536
_MAX_ERRORS = 10
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,15}\.rego", re.ASCII)
# What brackets may hide in: raw strings, strings, comments. Unclosed ones end with the line or the file.
_HIDDEN = re.compile(rb'`[^`]*(?:`|\Z)|"(?:\\.|[^"\\\n])*"?|#[^\n]*')
_WHERE = re.compile(r"(?:^|: )(?:/\S*?/)?rego/(\S+?\.rego):(\d+): (.*)", re.MULTILINE)
_RUNTIME = re.compile(r"^(?:fatal error|runtime|panic): ", re.MULTILINE)  # Go's last words
_UNDEFINED = re.compile(r"undefined function ([A-Za-z0-9_.]+)")
# One limit at a time: dash takes no more, and would go on without any.
_BOUNDS = 'ulimit -t "$1" && ulimit -v "$2" && ulimit -f "$3" && ulimit -c 0 && shift 3 && exec "$@"'


def compile_policy(rego: Mapping[str, bytes], data: Mapping[str, Any], settings: CompileSettings) -> CompiledPolicy:
    """The policy of these modules (path to text; `_test.rego` files are left out) and this data.

    Blocks for as long as `settings.timeout` allows. Raises `Fault`: `POLICY_BOMB` when a bound is exceeded,
    `POLICY_BUILTIN` for a builtin that is not allowed, `POLICY_COMPILE` for every other error, `POLICY_DATA_INVALID`
    for data that is no JSON; `field` is the file and line.
    """
    modules = {path: text for path, text in sorted(rego.items()) if not path.endswith("_test.rego")}
    _check_modules(modules, settings)
    digest = policy_digest(modules, data, max_data=settings.max_data)
    with tempfile.TemporaryDirectory(prefix="sallyport-policy-") as folder:
        workshop = Workshop(Path(folder), settings)
        workshop.write(modules)
        wasm = workshop.build("wasm", "policy.wasm")
        plan = workshop.build("plan", "plan.json")
        _check_roots(workshop.packages(), data)
    return CompiledPolicy(digest, wasm, modules, data, *_reads(plan))


def _reads(plan: bytes) -> tuple[Reads, DataReads]:
    try:
        planned = json.loads(plan)
    except RecursionError:  # deeper than this process reads
        return EVERYTHING, ALL_DATA
    return reads_of(planned, DECISION_ENTRYPOINT), data_reads_of(planned, DECISION_ENTRYPOINT)


def policy_digest(rego: Mapping[str, bytes], data: Mapping[str, Any], *, max_data: int = 1 << 30) -> str:
    """SHA-256, in lower-case hex, over the modules and the canonical data. 1, 1.0 and true differ in it. Raises
    `Fault` when `data` is no JSON object, or larger or deeper than allowed."""
    canonical = canonical_data(data)
    if len(canonical) > max_data:
        raise Fault(Reason.POLICY_BOMB, f"the data has {len(canonical)} bytes, at most {max_data} are allowed")
    whole = hashlib.sha256(b"sallyport policy 1\0")
    for name, content in [*sorted(rego.items()), ("", canonical)]:
        whole.update(len(name.encode()).to_bytes(8, "big") + name.encode())
        whole.update(len(content).to_bytes(8, "big") + content)
    return whole.hexdigest()


def canonical_data(data: Mapping[str, Any]) -> bytes:
    """`data` as JSON in one form: keys sorted, no spaces, UTF-8. Raises `Fault`."""
    _check_value(data, "data", MAX_DATA_DEPTH)
    try:
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise Fault(Reason.POLICY_DATA_INVALID, f"not JSON: {error}", field="data") from error


def _check_value(value: object, path: str, depth: int) -> None:
    if depth == 0:
        raise Fault(Reason.POLICY_BOMB, f"nested deeper than {MAX_DATA_DEPTH}", field=path[:256])
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Fault(Reason.POLICY_DATA_INVALID, "keys must be strings", field=path[:256])
            _check_value(item, f"{path}.{key}", depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, path, depth - 1)
    elif value is not None and not isinstance(value, str | int | float):
        raise Fault(Reason.POLICY_DATA_INVALID, f"{type(value).__name__} is not JSON", field=path[:256])


def _check_modules(modules: Mapping[str, bytes], settings: CompileSettings) -> None:
    if not 0 < len(modules) <= settings.max_files:
        raise Fault(Reason.POLICY_BOMB, f"{len(modules)} files, from 1 to {settings.max_files} are allowed")
    size = sum(len(text) for text in modules.values())
    if size > settings.max_source:
        raise Fault(Reason.POLICY_BOMB, f"{size} bytes of Rego, at most {settings.max_source} are allowed")
    for path, text in modules.items():
        if len(path) > 255 or not _FILE.fullmatch(path):
            raise Fault(Reason.POLICY_COMPILE, "not a relative path of plain names ending in .rego", field=path[:255])
        _check_nesting(path, text, settings.max_nesting)


def _check_nesting(path: str, text: bytes, most: int) -> None:
    bare = _HIDDEN.sub(lambda match: b"\n" * match[0].count(b"\n"), text)
    depth, line = 0, 1
    for byte in bare:
        if byte in b"([{":
            depth += 1
        elif byte in b")]}":
            depth -= 1
        elif byte == 10:
            line += 1
        if depth > most:
            raise Fault(Reason.POLICY_BOMB, f"brackets nested deeper than {most}", field=f"{path}:{line}")


def _check_roots(packages: Sequence[str], data: Mapping[str, Any]) -> None:
    """Code and data must not claim the same root: which one answers would depend on the engine."""
    for package in packages:
        root = package.split(".")[1]
        if root in data:
            raise Fault(Reason.POLICY_DATA_INVALID, f"package {package[5:]} stands where data does", field=root)


class Workshop:
    """A folder with policy text in it, and OPA let loose there under the bounds of `settings`."""

    def __init__(self, folder: Path, settings: CompileSettings) -> None:
        self._folder = folder
        self._settings = settings

    def write(self, modules: Mapping[str, bytes]) -> None:
        for path, text in modules.items():
            target = self._folder / "rego" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)

    def packages(self) -> tuple[str, ...]:
        """The packages of the modules, as references (`data.sallyport`). Raises `Fault`."""
        namespaces = json.loads(self.run("inspect", "--format=json", "rego"))["namespaces"]
        return tuple(sorted(name for name in namespaces if name.startswith("data.")))

    def build(self, target: str, member: str) -> bytes:
        """`member` of the bundle that OPA builds for `target`. Raises `Fault`."""
        entrypoints = [f"--entrypoint={name}" for name in (DECISION_ENTRYPOINT, EXPLAIN_ENTRYPOINT)]
        self.run("build", f"--target={target}", *entrypoints, f"--capabilities={CAPABILITIES}", "-o", target, "rego")
        with tarfile.open(self._folder / target) as bundle:
            content = bundle.extractfile(f"/{member}")
            if content is None:
                raise Fault(Reason.POLICY_COMPILE, "the compiler's bundle is not complete")
            return content.read(_MAX_OUTPUT)

    def run(self, *arguments: str, accept: Sequence[int] = (0,)) -> bytes:
        """The output of `opa` with these arguments. Raises `Fault` when it ends with a status not in `accept`."""
        out, err = self._folder / "stdout", self._folder / "stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            status = self._bounded(arguments, stdout.fileno(), stderr.fileno())
        if status not in accept:
            # `opa build` tells of errors on its standard output, other commands on the other.
            words = b"\n".join(file.read_bytes()[:_MAX_WORDS] for file in (err, out))
            raise self._fault(status, words.decode(errors="replace"))
        return out.read_bytes()

    def _bounded(self, arguments: Sequence[str], stdout: int, stderr: int) -> int:
        settings = self._settings
        bounds = [str(int(settings.timeout) + 1), str(settings.memory >> 10), str(_MAX_OUTPUT >> 9)]
        process = subprocess.Popen(  # noqa: S603 - a fixed command; hostile text reaches it in files only
            ["/bin/sh", "-c", _BOUNDS, "sh", *bounds, settings.opa, *arguments],
            cwd=self._folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "GOMAXPROCS": "2", "HOME": str(self._folder)},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            return process.wait(settings.timeout)
        except subprocess.TimeoutExpired:
            raise Fault(Reason.POLICY_BOMB, f"compiling took more than {settings.timeout:g} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _fault(self, status: int, errors: str) -> Fault:
        """What went wrong, from the compiler's status and words."""
        found = [(f"{path}:{line}", text) for path, line, text in _WHERE.findall(errors)]
        if not found and (status < 0 or _RUNTIME.search(errors)):
            return Fault(Reason.POLICY_BOMB, "the compiler exceeded its bounds", internal=errors[:4096])
        if status == 127:
            return Fault(Reason.SETTING_INVALID, f"{self._settings.opa} cannot be run", field="policy.compile.opa")
        if not found:
            return Fault(Reason.POLICY_COMPILE, errors.strip().removeprefix("error: ")[:512])
        for where, text in found:
            match = _UNDEFINED.search(text)
            if match and match[1] in self._builtins():
                return Fault(Reason.POLICY_BUILTIN, f"{match[1]} is not allowed", field=where)
        detail = "; ".join(f"{where}: {text}" for where, text in found[:_MAX_ERRORS])
        return Fault(Reason.POLICY_COMPILE, detail, field=found[0][0])

    def _builtins(self) -> set[str]:
        """The names of all builtins that this OPA has."""
        known = json.loads(self.run("capabilities", "--current"))
        return {item["name"] for item in known["builtins"]}
