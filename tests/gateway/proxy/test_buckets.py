"""Token buckets in shared memory: each keeps its rate, they share, and nothing that they find there harms."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.faults import Fault
from foundation.reasons import Reason
from gateway.proxy.buckets import KEY_BYTES, PLACES, ROUNDING, Buckets


def key(name: object) -> bytes:
    return blake2b(str(name).encode(), digest_size=KEY_BYTES).digest()


def taken(buckets: Buckets, count: int, now: float, per_second: float = 10.0, burst: float = 5.0) -> int:
    return sum(buckets.take(key("a"), now, per_second, burst) for _ in range(count))


def test_a_burst_and_then_the_rate() -> None:
    buckets = Buckets.private(64)
    assert taken(buckets, 9, 100.0) == 5
    assert taken(buckets, 9, 100.1) == 1
    assert taken(buckets, 9, 100.5) == 4
    assert taken(buckets, 9, 999.0) == 5


@given(st.floats(0.1, 50), st.integers(1, 50), st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2)), max_size=120))
def test_no_key_gets_more_than_its_burst_and_rate(per_second: float, burst: int, asks: list[tuple[int, float]]) -> None:
    buckets, now, got = Buckets.private(64), 1000.0, dict.fromkeys(range(4), 0)
    for who, pause in asks:
        now += pause
        got[who] += buckets.take(key(who), now, per_second, burst)
        assert got[who] <= burst + (now - 1000.0 + ROUNDING) * per_second + 1e-6


def test_who_names_one_file_has_one_table(tmp_path: Path) -> None:
    one, other = Buckets.shared(tmp_path / "rates", 64), Buckets.shared(tmp_path / "rates", 64)
    assert taken(one, 4, 100.0) == 4
    assert taken(other, 4, 100.0) == 1
    assert taken(one, 4, 100.1) == 1
    assert (tmp_path / "rates").stat().st_mode & 0o777 == 0o600


def test_the_table_is_bounded_and_what_is_used_up_stays() -> None:
    buckets = Buckets.private(PLACES)
    assert taken(buckets, 9, 0.0, per_second=0.001) == 5
    for number in range(1000):
        assert buckets.take(key(number), 0.0, 10.0, 5.0)
    assert taken(buckets, 9, 0.0, per_second=0.001) == 0


@pytest.mark.parametrize(
    "found", [b"\xff" * 24, b"\x00" * 16 + b"\xff" * 8, key("a") + b"\xf0\xff\xff\xff\xff\xff\xef\x7f"]
)
def test_what_cannot_be_is_a_full_bucket(tmp_path: Path, found: bytes) -> None:
    (tmp_path / "rates").write_bytes(found * 64)
    assert taken(Buckets.shared(tmp_path / "rates", 64), 9, 100.0) == 5


def test_a_file_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "missing" / "rates", tmp_path / "link", tmp_path):
        with pytest.raises(Fault) as refused:
            Buckets.shared(path)
        assert refused.value.reason is Reason.FILE_UNREADABLE


_TAKER = """
import sys
from pathlib import Path
from tests.gateway.proxy.test_buckets import Buckets, key
buckets = Buckets.shared(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read(1)
print(sum(buckets.take(key("a"), 100.0, 1.0, 5000.0) for _ in range(20000)))
"""


def test_processes_share_a_rate(tmp_path: Path) -> None:
    """All take at once, far more often than requests could."""
    words = [sys.executable, "-c", _TAKER, str(tmp_path / "rates")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(words, env=environment, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    assert [process.stdout.readline() for process in processes] == [b"ready\n"] * 4
    for process in processes:
        process.stdin.write(b"x")
        process.stdin.close()
    got = [int(process.stdout.read()) for process in processes]
    assert [process.wait() for process in processes] == [0] * 4
    assert sum(got) == 5000
