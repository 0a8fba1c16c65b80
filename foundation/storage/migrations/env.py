"""What Alembic runs. The caller hands over an open connection in a write transaction; all migrations go into it."""

from __future__ import annotations

from alembic import context

from foundation.storage.database import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
