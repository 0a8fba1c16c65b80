"""Masked values: equal ones are equal, under one key, and say nothing else."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from foundation.decisionlog.masking import KEY_BYTES, Mask
from foundation.faults import Fault
from foundation.reasons import Reason

ONE = Mask(bytes(KEY_BYTES))


def test_equal_values_are_equal_and_types_differ() -> None:
    values = ("1", 1, 1.0, True, None, "", "null", "é", "\ud800")
    assert len({ONE.value(value) for value in values}) == len(values)
    assert ONE.value("secret") == ONE.value("secret")
    assert "secret" not in ONE.value("secret")


def test_another_key_shows_by_its_name() -> None:
    other = Mask(b"\x01" * KEY_BYTES)
    ours, theirs = ONE.value("a").split(":"), other.value("a").split(":")
    assert ours[0] == theirs[0] == "hmac"
    assert (ours[1] != theirs[1], ours[2] != theirs[2]) == (True, True)


@pytest.mark.parametrize("target", ["/a", "/a/b", "*", ""])
def test_a_target_without_query_stays(target: str) -> None:
    assert ONE.target(target) == target


def test_a_targets_query_is_masked() -> None:
    found = ONE.target("/a/b?token=hunter2?x")
    assert found.startswith("/a/b?hmac:")
    assert "hunter2" not in found
    assert found == ONE.target("/a/b?token=hunter2?x") != ONE.target("/a/b?token=hunter3?x")


def test_the_key_is_made_once_and_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "mask.key"
    first = Mask.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Mask.open(path).value("a") == first.value("a")
    path.unlink()
    assert Mask.open(path).value("a") != first.value("a")


def test_a_key_that_others_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.key"
    path.write_bytes(bytes(KEY_BYTES))
    path.chmod(0o644)
    with pytest.raises(Fault) as caught:
        Mask.open(path)
    assert caught.value.reason is Reason.FILE_MODE_UNSAFE
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(Fault) as caught:
        Mask.open(path)
    assert caught.value.reason is Reason.FILE_UNREADABLE
