"""nanopref: preference alignment from scratch, small enough to read in an afternoon."""
