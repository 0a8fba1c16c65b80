"""Takes out each defence, one at a time, and requires that its attack's test then fails.

`<class>.patch`, or `<class>.<defence>.patch` where a class has several, removes one defence; the test is
`tests/attacks/test_<class>.py`. Works on a copy of the tree. Exit code 0: each test passes as the tree stands and fails
without its defence. 1: a test that does not notice, a patch that no longer applies, or an attack without a proof.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PATCHES = Path(__file__).resolve().parent
ATTACKS = PATCHES.parent
SECONDS_EACH = 300


def main() -> int:
    wanted = _arguments().names
    proofs = [patch for patch in sorted(PATCHES.glob("*.patch")) if not wanted or _attack(patch) in wanted]
    unproven = sorted(set(_attacks()) - {_attack(patch) for patch in PATCHES.glob("*.patch")})
    failures = [] if wanted else [f"{name}: no patch proves it" for name in unproven]
    with _copy_of_the_tree() as tree:
        failures += _baseline(tree, sorted({_attack(patch) for patch in proofs}))
        for patch in proofs:
            verdict = _prove(tree, patch)
            print(f"{verdict or 'proven':<40} {patch.stem}", flush=True)
            failures += [f"{patch.name}: {verdict}"] if verdict else []
    print(*failures, sep="\n", file=sys.stderr)
    print(f"{len(proofs)} defences taken out, {len(failures)} failures")
    return 1 if failures else 0


def _prove(tree: Path, patch: Path) -> str:
    """Why `patch` proves nothing, or an empty text."""
    if not _apply(tree, patch):
        return "the patch does not apply"
    try:
        passed = _passes(tree, [_attack(patch)])
    finally:
        _apply(tree, patch, reverse=True)
    return "THE TEST DOES NOT NOTICE" if passed else ""


def _baseline(tree: Path, attacks: list[str]) -> list[str]:
    return [] if not attacks or _passes(tree, attacks) else ["an attack's test fails as the tree stands"]


def _passes(tree: Path, attacks: list[str]) -> bool:
    files = [f"tests/attacks/test_{attack}.py" for attack in attacks]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    limit = SECONDS_EACH * max(1, len(files))
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode > 1:
        raise SystemExit(f"pytest could not run {files}:\n{done.stdout.decode()[-2000:]}{done.stderr.decode()[-2000:]}")
    return done.returncode == 0


def _apply(tree: Path, patch: Path, *, reverse: bool = False) -> bool:
    command = ["git", "apply", "--unidiff-zero", *(["-R"] if reverse else []), str(patch)]
    return subprocess.run(command, cwd=tree, capture_output=True, check=False).returncode == 0


@contextmanager
def _copy_of_the_tree() -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    with tempfile.TemporaryDirectory(prefix="attacks-proof-") as folder:
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                target = Path(folder, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        yield Path(folder)


def _attacks() -> Iterator[str]:
    for test in sorted(ATTACKS.glob("test_*.py")):
        yield test.stem.removeprefix("test_")


def _attack(patch: Path) -> str:
    return patch.name.split(".")[0]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="attack classes; all when none is named")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
