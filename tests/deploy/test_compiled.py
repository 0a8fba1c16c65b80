"""What `setup.py` compiles where that is asked for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from tests.support.processes import ROOT


def request_path() -> tuple[str, ...]:
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names: tuple[str, ...] = module.REQUEST_PATH
    return names


def test_the_request_path_is_modules_of_ours() -> None:
    names = request_path()
    assert list(names) == sorted(set(names))
    assert [name for name in names if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []


def test_nothing_is_compiled_unasked() -> None:
    """Neither Cython nor a C compiler is needed then."""
    code = (
        "import runpy, sys; sys.modules['Cython'] = None; sys.argv = ['setup.py', '--name'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["sallyport"], done.stderr
