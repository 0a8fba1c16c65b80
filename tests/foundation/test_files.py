"""Files are replaced whole, and secrets are nobody else's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from foundation.faults import Fault
from foundation.files import make_private_folder, read_bounded, read_secret, write_atomic, write_secret
from foundation.reasons import Reason


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_secret_is_written_and_read_privately(tmp_path: Path) -> None:
    path = tmp_path / "key"
    old = os.umask(0)
    try:
        write_secret(path, b"one")
        write_secret(path, b"two")
    finally:
        os.umask(old)
    assert (read_secret(path), mode(path)) == (b"two", 0o600)
    assert [item.name for item in tmp_path.iterdir()] == ["key"]


def test_a_secret_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_secret(path, b"one", replace=False)
    with pytest.raises(FileExistsError):
        write_secret(path, b"two", replace=False)
    assert read_secret(path) == b"one"
    assert [item.name for item in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("bit", [0o040, 0o020, 0o010, 0o004, 0o002, 0o001])
def test_a_secret_that_others_may_touch_is_refused(tmp_path: Path, bit: int) -> None:
    path = tmp_path / "key"
    write_secret(path, b"one")
    path.chmod(0o600 | bit)
    with pytest.raises(Fault) as caught:
        read_secret(path)
    assert (caught.value.reason, caught.value.field) == (Reason.FILE_MODE_UNSAFE, str(path))


def test_what_is_no_plain_file_is_unreadable(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", b"one")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("missing", "link", "pipe", "."):
        with pytest.raises(Fault) as caught:
            read_secret(tmp_path / name)
        assert caught.value.reason is Reason.FILE_UNREADABLE


def test_a_secret_too_large_is_refused(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", b"12345")
    with pytest.raises(Fault):
        read_secret(tmp_path / "key", max_bytes=4)
    assert read_secret(tmp_path / "key", max_bytes=5) == b"12345"


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("foundation.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["state"]


def test_a_private_folder(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700
    (tmp_path / "a" / "b").chmod(0o770)
    with pytest.raises(Fault) as caught:
        make_private_folder(tmp_path / "a" / "b")
    assert caught.value.reason is Reason.FILE_MODE_UNSAFE


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "given"
    path.write_bytes(b"1234")
    assert read_bounded(path, 4) == b"1234"
    for bad, most in ((path, 3), (tmp_path / "missing", 4), (tmp_path, 4)):
        with pytest.raises(Fault) as caught:
            read_bounded(bad, most)
        assert (caught.value.reason, caught.value.field) == (Reason.FILE_UNREADABLE, str(bad))
