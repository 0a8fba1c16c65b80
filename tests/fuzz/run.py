"""Fuzzes each target of every parser for a while: `make fuzz`. Exit code 1 when one finds something."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    seconds = str(parser.parse_args().seconds)
    failed = []
    for path in sorted(Path(__file__).parent.glob("*_targets.py")):
        module = f"tests.fuzz.{path.stem}"
        for name in importlib.import_module(module).TARGETS:
            print(f"{module} {name}", flush=True)
            command = [sys.executable, "-m", "tests.support.fuzzing", module, name, seconds]
            if subprocess.run(command, check=False).returncode:
                failed.append(f"{module} {name}")
    print(*(f"FOUND SOMETHING: {each}" for each in failed), f"{len(failed)} findings", sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
