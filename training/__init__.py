"""Clean data -> bundle, offline."""
