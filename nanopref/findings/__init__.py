"""What was measured with this package, a file per question: `python -m nanopref.findings.NAME` trains what is missing
over several seeds, prints the table that stands in the README and saves its figure as {out}/findings/NAME.png."""
