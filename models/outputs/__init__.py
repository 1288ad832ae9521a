"""Writing what was found: score files, maps, samples."""
