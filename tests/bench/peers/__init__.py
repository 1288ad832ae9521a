"""Other ways to serve the same graph, for `tests.bench.serving`; each file is started as a program of its own."""
