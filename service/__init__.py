"""A bundle -> answers over HTTP, and the `vaegis` command."""
