"""Preference data from a file: JSONL or a JSON list (each also gzipped, .gz) or Parquet, to rows.

The first row decides the format, by its fields. A later row in another format is an error; any other row that cannot be
used is dropped and counted by its reason, or is an error when `strict`.
"""
import codecs
import gzip
import hashlib
import json
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nanopref.data.formats import BadRow, converter, detect, kind, parse
from nanopref.errors import UserError

# Bytes. A row of a million tokens has about 4 MiB: a longer line is a file without line ends and could fill the memory.
MAX_LINE = 16 * 2**20


@dataclass(frozen=True)
class Row:
    """One preference. A demonstration has chosen only, an unpaired row one of the two; the other is None."""
    prompt: tuple         # of {"role", "content"}: ends with a user message
    chosen: str | None
    rejected: str | None
    line: int             # 1-based line of the file, item of the JSON list or row of the Parquet file
    between: tuple = ()   # of a ranking: the responses between chosen, its best, and rejected, its worst
    scores: tuple | None = None   # what the file says that (chosen, *between, rejected) are worth
    preferred: int | None = None  # 1 or 2: which response in the file's own order is the chosen one; None without order
    group: str | None = None      # of annotators

    @property
    def key(self):
        """The prompt as one string: rows with the same key must stand on the same side of a split."""
        return json.dumps(self.prompt)


@dataclass(frozen=True)
class Dataset:
    """The rows of one file, and what of it was dropped."""
    path: str
    format: str           # a key of FORMATS
    rows: list
    dropped: dict         # reason -> count
    n_lines: int          # lines (or items) that are not blank: len(rows) + all dropped
    first: dict           # reason -> where it was met first, such as "line 12"

    def summary(self):
        reasons = ", ".join(f"{count} {reason} (first: {self.first[reason]})"
                            for reason, count in sorted(self.dropped.items()))
        return (f"{self.path}: format {self.format}, {len(self.rows)} of {self.n_lines} rows kept"
                + (f"; dropped: {reasons}" if reasons else ""))


def read(path, strict=False, axis=None):
    """Rows of the file at `path` as a Dataset. `axis`: which ranking of PKU-SafeRLHF to read, "better" or "safer".

    Raises UserError when the file cannot be read, is in no known format or in two, when no row is usable, when `axis`
    is missing or has no use, and, if `strict`, at the first row that would be dropped.
    """
    rows, dropped, first, known_format, n_lines = [], Counter(), {}, None, 0
    for unit, number, line in _lines(Path(path)):
        n_lines += 1
        where = f"{unit} {number}"
        try:
            row = _json_object(line)
            row_format = detect(row)
            if known_format is None:
                known_format, convert = row_format, converter(row, row_format, axis, f"{path}, {where}")
            if row_format not in (known_format, None):
                raise UserError(f"{path}, {where}: a row in format {row_format} in a file in format {known_format}. "
                                "Keep one format per file: move these rows to a file of their own")
            rows.append(Row(**parse(row, known_format, convert), line=number))
        except BadRow as bad:
            if strict:
                raise UserError(f"{path}, {where}: {bad}. "
                                "Correct the row, or leave out --strict to drop such rows and count them") from None
            dropped[bad.reason] += 1
            first.setdefault(bad.reason, where)
    data = Dataset(str(path), known_format or "unknown", rows, dict(dropped), n_lines, first)
    if not rows:
        raise UserError(f"no usable row in {data.summary()}" if n_lines else f"{path}: the file holds no rows")
    return data


def split(rows, test_fraction, seed):
    """(train, test) lists in the order of `rows`; all rows of a prompt stand on the same side.

    Prompts are ordered by a hash of seed and text, and go to test until it has round(test_fraction * len(rows)) rows;
    the last prompt's other rows go with it. Raises UserError unless 0 <= test_fraction < 1 leaves rows to train on.
    """
    if not 0 <= test_fraction < 1:
        raise UserError(f"test_fraction is {test_fraction}: expected a number from 0 up to but not including 1")
    keys = [row.key for row in rows]
    n_rows_of = Counter(keys)
    wanted, test_keys, n_test = round(test_fraction * len(rows)), set(), 0
    for key in sorted(n_rows_of, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest()):
        if n_test >= wanted:
            break
        test_keys.add(key)
        n_test += n_rows_of[key]
    if n_test == len(rows):
        raise UserError(f"test_fraction {test_fraction} of {len(rows)} rows with {len(n_rows_of)} different prompts "
                        "leaves none to train on: use a smaller fraction or more prompts")
    train = [row for row, key in zip(rows, keys) if key not in test_keys]
    test = [row for row, key in zip(rows, keys) if key in test_keys]
    return train, test


def _lines(path):
    """Yields ("line", "item" or "row", its 1-based number, JSON text or parsed row); blank lines are left out."""
    if path.is_dir():
        raise UserError(f"{path}: a directory; give one file in it")
    number = 1
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
            return
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            line = file.readline(MAX_LINE + 1).removeprefix(codecs.BOM_UTF8)
            if line.lstrip().startswith(b"["):  # a row is an object and starts with "{"
                yield from _list_items(path, (line + file.read()).decode("utf-8"))
                return
            while line:
                if len(line) > MAX_LINE:
                    raise UserError(f"{path}, line {number}: longer than {MAX_LINE // 2**20} MiB. "
                                    "Expected JSONL: one row, one JSON object, on each line")
                if line.strip():
                    yield "line", number, line.decode("utf-8")
                line, number = file.readline(MAX_LINE + 1), number + 1
    except UnicodeDecodeError as error:
        number += error.object.count(b"\n", 0, error.start)  # a JSON list is decoded whole
        raise UserError(f"{path}, line {number}: not UTF-8 text; expected JSONL, a JSON list, or gzip named .gz. "
                        "Save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}. Give a readable file") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: the gzip data is cut off or damaged ({error}). "
                        "Download or compress the file again") from None


def _list_items(path, text):
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: starts like a JSON list, but is not one: {error}. "
                        "Expected [{...}, {...}] or JSONL, one object on each line") from None
    for number, item in enumerate(items, start=1):
        yield "item", number, item


def _parquet_rows(path):
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: Parquet needs pyarrow: pip install pyarrow, or convert the file to JSONL") from None
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches():
            for number, row in enumerate(batch.to_pylist(), start=number + 1):
                yield "row", number, row
    except ValueError as error:  # pyarrow.ArrowInvalid is one
        raise UserError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from None


def _json_object(line):
    try:
        row = json.loads(line) if isinstance(line, str) else line
        # Half a surrogate pair is no text: it cannot be tokenised. default: Parquet also has dates and bytes.
        json.dumps(row, ensure_ascii=False, default=str).encode("utf-8")
    except (ValueError, RecursionError):
        raise BadRow("not JSON", "(whole row)", "one JSON object of valid Unicode text") from None
    if not isinstance(row, dict):
        raise BadRow("wrong type", "(whole row)", f"a JSON object, not {kind(row)}")
    return row
