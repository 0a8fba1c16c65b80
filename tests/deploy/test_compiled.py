"""What `setup.py` compiles where that is asked for."""

from __future__ import annotations

import runpy
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.processes import ROOT


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `setup.py` hands to setuptools. There is no Cython."""
    found: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "setuptools", SimpleNamespace(setup=found.update))
    monkeypatch.setitem(sys.modules, "Cython", None)
    return found


def test_the_request_path_is_modules_of_ours(handed_over: dict[str, Any]) -> None:
    names = runpy.run_path(str(ROOT / "setup.py"))["REQUEST_PATH"]
    assert list(names) == sorted(set(names))
    assert [name for name in names if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []


def test_nothing_is_compiled_unasked(handed_over: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SALLYPORT_COMPILED", raising=False)
    runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")
    assert handed_over == {"ext_modules": []}


def test_nothing_is_left_interpreted_in_silence(handed_over: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALLYPORT_COMPILED", "1")
    with pytest.raises(ImportError):
        runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")
