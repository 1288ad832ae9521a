"""What runs as an operating-system process, and decides nothing."""
