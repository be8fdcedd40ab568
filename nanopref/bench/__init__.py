"""The benchmark: `python -m nanopref.bench --help`."""
