"""Which decision each of nodes' records is, so that it is found by its ID; also of those that are there."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_ID = re.compile(r"d-[0-9a-f]{28}", re.ASCII)
_PAGE = 1000
_records = sa.table(
    "node_records",
    sa.column("node", sa.String),
    sa.column("number", sa.BigInteger),
    sa.column("kind", sa.String),
    sa.column("record", sa.LargeBinary),
    sa.column("decision", sa.String),
)


def upgrade() -> None:
    op.add_column("node_records", sa.Column("decision", sa.String(length=30), nullable=True))
    after: tuple[str, int] = ("", 0)
    while rows := _page(after):
        _fill(rows)
        after = (rows[-1].node, rows[-1].number)
    op.create_index(op.f("ix_node_records_decision"), "node_records", ["decision"])


def downgrade() -> None:
    op.drop_index(op.f("ix_node_records_decision"), "node_records")
    op.drop_column("node_records", "decision")


def _page(after: tuple[str, int]) -> Sequence[Any]:
    behind = sa.tuple_(_records.c.node, _records.c.number) > sa.tuple_(*after)
    query = sa.select(_records.c.node, _records.c.number, _records.c.record)
    query = query.where(_records.c.kind == "decision", behind).order_by(_records.c.node, _records.c.number).limit(_PAGE)
    return op.get_bind().execute(query).all()


def _fill(rows: Sequence[Any]) -> None:
    known = [(row, str(json.loads(row.record)["body"].get("id", ""))) for row in rows]
    given = [{"of": row.node, "at": row.number, "known": id_} for row, id_ in known if _ID.fullmatch(id_)]
    if given:
        which = (_records.c.node == sa.bindparam("of")) & (_records.c.number == sa.bindparam("at"))
        op.get_bind().execute(sa.update(_records).where(which).values(decision=sa.bindparam("known")), given)
