"""Plain JSON routes."""
