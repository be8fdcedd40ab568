"""Files in, rows out, token ids; models and data by name. What users need to know is in README.md here.

    formats.py   a line for each public format: the fields that tell it from the others, and a converter
    files.py     JSONL, JSON or Parquet to rows; what is dropped and why; the split by prompt
    examples.py  rows to token ids: the responses a loss reads, and what was cut or dropped
    hub.py       a local path stays what it is, org/name comes from the Hugging Face Hub
"""
