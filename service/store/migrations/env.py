"""Run by Alembic: migrates over the connection that `vaegis.service.store.database` opened and locked."""

from alembic import context

from vaegis.service.store.schema import StoreTable

# Batch mode: SQLite cannot alter a table in place.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=StoreTable.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
