"""Alembic migrations of the store, run by `vaegis.service.store.database`."""
