"""Policies, the ledger's housekeeping, and tables that are what the migrations make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

import pki.tables
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.storage.database import metadata
from pki.ledger import RESERVATION_SECONDS, Step, keep_answer
from pki.signer import FileSigner
from tests.support.site import ACTOR, Site, open_site


async def test_a_revision_only_rises(site: Site) -> None:
    with pytest.raises(Fault) as caught:
        await site.authority.policy()
    assert caught.value.reason is Reason.REVISION_MISSING
    await site.authority.publish_policy(5, b"five", ACTOR)
    for stale in (5, 4, 0):
        with pytest.raises(Fault) as caught:
            await site.authority.publish_policy(stale, b"old", ACTOR)
        assert caught.value.reason is Reason.REVISION_DOWNGRADE
    await site.authority.publish_policy(9, b"nine", ACTOR)
    assert (await site.authority.policy()).bundle == b"nine"
    assert (await site.authority.policy(5)).bundle == b"five"
    assert site.audit.kinds().count("policy.published") == 2


async def test_a_bundle_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pki.authority.MAX_BUNDLE_BYTES", 10)
    with pytest.raises(Fault) as caught:
        await site.authority.publish_policy(1, b"x" * 11, ACTOR)
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


async def test_starting_tidies_what_a_dead_process_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    async def die(self: FileSigner, message: bytes) -> bytes:
        raise Killed

    async with open_site(tmp_path) as site:
        node = await site.expect()
        with monkeypatch.context() as patch:
            patch.setattr(FileSigner, "sign", die)
            with pytest.raises(Killed):
                await site.issue(node)
        assert await site.authority.ledger.tidy() == 0
        site.clock.advance(RESERVATION_SECONDS + 1)
        assert await site.authority.ledger.tidy() == 1
        (row,) = await site.authority.ledger.page(node)
        assert row.step is Step.ABANDONED
        assert site.audit.kinds()[-1] == "certificate.abandoned"


async def keep(site: Site, answer_key: bytes, body: bytes, until: int) -> None:
    async with site.authority.ledger._books.writing() as work:
        await keep_answer(work, answer_key, body, until)


async def test_answers_are_kept_once_and_bounded(site: Site) -> None:
    until = int(site.clock.now()) + 60
    await keep(site, b"k" * 32, b"body", until)
    for key, body, reason in (
        (b"k" * 32, b"other", Reason.CONFLICT),
        (b"short", b"body", Reason.MESSAGE_TOO_LARGE),
        (b"l" * 32, b"x" * 65537, Reason.MESSAGE_TOO_LARGE),
    ):
        with pytest.raises(Fault) as caught:
            await keep(site, key, body, until)
        assert caught.value.reason is reason
    assert await site.authority.ledger.recall(b"k" * 32) == b"body"
    site.clock.advance(61)
    await site.authority.ledger.tidy()
    await keep(site, b"k" * 32, b"again", until + 100)


async def test_certificates_come_in_pages(site: Site) -> None:
    a, b = await site.expect("a"), await site.expect("b")
    mine = sorted([(await site.issue(a)).serial for _ in range(3)])
    await site.issue(b)
    first = await site.authority.ledger.page(a, limit=2)
    rest = await site.authority.ledger.page(a, after=first[-1].serial)
    assert [row.serial for row in first + rest] == mine
    assert len(await site.authority.ledger.page()) == 6  # and those of `init`


async def test_the_migrations_make_the_tables(site: Site) -> None:
    def differences(connection: Connection) -> list[Any]:
        ours = {table.name for table in pki.tables.metadata.tables.values()}
        options = {"include_name": lambda name, kind, _: kind != "table" or name in ours}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    async with site.database.reading() as connection:
        assert await connection.run_sync(differences) == []
