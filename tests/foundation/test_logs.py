"""Logs are one line of JSON each and hold no secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.logs import MAX_TEXT, REDACTED, JsonFormatter, configure_logging
from foundation.wire.enrolment import Token

TOKEN = Token(bytes(32), bytes(16), bytes(range(32))).encode()


def formatted(message: str = "m", *args: object, **extra: Any) -> dict[str, Any]:
    record = logging.getLogger("test").makeRecord("test", logging.INFO, "f", 1, message, args, None, extra=extra)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line, parse_constant=pytest.fail)
    return found


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    written = io.StringIO()
    configure_logging("info", written)
    yield written
    root.handlers[:] = before
    root.setLevel(level)


def test_a_record_becomes_a_line(stream: io.StringIO) -> None:
    logging.getLogger("gateway.test").info("node %s is back", "n1", extra={"route": "fleet", "trace": "ab", "count": 3})
    logging.getLogger("gateway.test").debug("not told")
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "info",
        "logger": "gateway.test",
        "message": "node n1 is back",
        "trace": "ab",
        "fields": {"route": "fleet", "count": 3},
    }


def test_an_exception_is_told_without_secrets(stream: io.StringIO) -> None:
    try:
        raise ValueError(f"cannot use {TOKEN}")
    except ValueError:
        logging.getLogger("x").exception("failed")
    found = json.loads(stream.getvalue())
    assert "ValueError" in found["exception"]
    assert TOKEN not in found["exception"]


@pytest.mark.parametrize("name", ["password", "db_password", "token", "Authorization", "client_secret", "private_key"])
def test_fields_named_as_secrets_are_redacted(name: str) -> None:
    assert formatted(**{name: "hush"})["fields"] == {name: REDACTED}
    assert formatted(outer={name: "hush"})["fields"] == {"outer": {name: REDACTED}}


def test_fields_about_secrets_are_kept() -> None:
    assert formatted(token_id="ab", password_file="/x")["fields"] == {"token_id": "ab", "password_file": "/x"}


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "Bearer abcdefghij",
        "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMHcCAQ",
    ],
)
def test_texts_that_look_like_secrets_are_redacted(secret: str) -> None:
    message = formatted("got %s here", secret)["message"]
    assert message.startswith(f"got {REDACTED}")
    for told in (message, formatted(note=f"x {secret}")["fields"]["note"]):
        assert secret not in told


def test_bytes_and_long_texts_are_bounded() -> None:
    assert formatted(blob=b"abc")["fields"] == {"blob": "3 bytes"}
    assert len(formatted("x" * 100_000)["message"]) == MAX_TEXT
    assert len(formatted(**{f"f{n}": n for n in range(100)})["fields"]) == 32


@given(st.text(), st.dictionaries(st.from_regex(r"f[a-z]{1,8}", fullmatch=True), st.text() | st.binary() | st.floats()))
def test_anything_makes_one_line(message: str, extra: dict[str, object]) -> None:
    formatted(message.replace("%", "%%"), **{f"x_{name}": value for name, value in extra.items()})
