"""What a node takes with it for when it is cut off: the revision in force, and what is on record about itself."""

from __future__ import annotations

from sqlalchemy import select

from foundation.identifiers import SpiffeId
from foundation.identity import SnapshotNumbers
from foundation.storage.connection import Connection
from foundation.wire.bundle import BundleTerms, NodeBundle
from pki.books import Books, Part, read_numbers
from pki.inventory import read_entry
from pki.tables import policies


class NodeBundles:
    """Bundles as nodes ask for them. The archive of the revision in force is kept in memory: all nodes ask for it
    within minutes of its publication."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._archive: tuple[int, bytes] = (0, b"")

    async def of(self, node: SpiffeId, have: int, policy_key: bytes, terms: BundleTerms) -> NodeBundle:
        """The bundle of `node`, all of it from one moment, without the archive when the node has that revision.
        `policy_key` is PEM. Raises `Fault(INVENTORY_UNKNOWN)`."""
        async with self._books.reading() as connection:
            entry = await read_entry(connection, node)
            found = await read_numbers(connection)
            numbers = SnapshotNumbers(
                found[Part.POLICY], found[Part.REVOCATIONS], found[Part.POSTURES], found[Part.INVENTORY]
            )
            archive = b"" if have == numbers.policy else await self._read_archive(connection, numbers.policy)
        now = self._books.clock.now()
        return NodeBundle(now, numbers, policy_key, entry.record, entry.posture, entry.attested_until, terms, archive)

    async def _read_archive(self, connection: Connection, revision: int) -> bytes:
        if self._archive[0] != revision:
            bundle = await connection.scalar(select(policies.c.bundle).where(policies.c.revision == revision))
            self._archive = (revision, bundle or b"")
        return self._archive[1]
