"""Alembic migrations of the store, run by `service.store.database`."""
