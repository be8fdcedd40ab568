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
from nanopref.errors import UserError, one_line, shown

# Bytes. A row of a million tokens has about 4 MiB: a longer line is a file without line ends and could fill the memory.
MAX_LINE = 16 * 2**20
MAX_LIST = 2**30  # of a JSON list, which is read whole
MAX_RATIO = 200   # how many times its own size a gzip file may unpack to: text is packed 3 to 10 times, zeros 1,000


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
        return (f"{named(self.path)}: format {self.format}, {len(self.rows)} of {self.n_lines} rows kept"
                + (f"; dropped: {reasons}" if reasons else ""))


def named(path):
    """A file's name as a message has it, which may be anything but a slash and NUL, and 4,096 bytes long."""
    return one_line(path, 100)


def check_file(path):
    """UserError for what is there but cannot be read to its end: a directory, or a pipe or a device, which may wait
    for ever or have no end."""
    try:
        if path.is_dir():
            raise UserError(f"{named(path)}: a directory; give one file in it")
        if path.exists() and not path.is_file():
            raise UserError(f"{named(path)}: a pipe or a device; save what it gives as a file, and give that")
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise UserError(f"{named(path)}: cannot be read: {error.strerror}. Give a readable file") from None


def read(path, strict=False, axis=None):
    """Rows of the file at `path` as a Dataset. `axis`: which ranking of PKU-SafeRLHF to read, "better" or "safer".

    Raises UserError when the file cannot be read, is in no known format or in two, when no row is usable, when `axis`
    is missing or has no use, and, if `strict`, at the first row that would be dropped.
    """
    name, rows, dropped, first, known_format, n_lines = named(path), [], Counter(), {}, None, 0
    for unit, number, line in _lines(Path(path)):
        n_lines += 1
        where = f"{unit} {number}"
        try:
            row = _json_object(line)
            row_format = detect(row)
            if known_format is None:
                known_format, convert = row_format, converter(row, row_format, axis, f"{name}, {where}")
            if row_format not in (known_format, None):
                raise UserError(f"{name}, {where}: a row in format {row_format} in a file in format {known_format}. "
                                "Keep one format per file: move these rows to a file of their own")
            rows.append(Row(**parse(row, known_format, convert), line=number))
        except BadRow as bad:
            if strict:
                raise UserError(f"{name}, {where}: {bad}. "
                                "Correct the row, or leave out --strict to drop and count it") from None
            dropped[bad.reason] += 1
            first.setdefault(bad.reason, where)
    data = Dataset(str(path), known_format or "unknown", rows, dict(dropped), n_lines, first)
    if not rows:
        raise UserError(f"no usable row in {data.summary()}" if n_lines else f"{name}: the file holds no rows")
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
    check_file(path)
    name, number, n_bytes = named(path), 1, 0
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
            return
        most = MAX_LINE + MAX_RATIO * path.stat().st_size  # a small file must not fill the memory, nor take hours
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            line = file.readline(MAX_LINE + 1).removeprefix(codecs.BOM_UTF8)
            if line.lstrip().startswith(b"["):  # a row is an object and starts with "{"
                most = min(MAX_LIST, most)
                line += file.read(max(0, most - len(line)))
                if file.read(1):
                    raise UserError(f"{name}: a JSON list of more than {most // 2**20} MiB, and it is read whole. "
                                    "Save it as JSONL: one object on each line")
                yield from _list_items(path, line.decode("utf-8"))
                return
            while line:
                n_bytes += len(line)
                if len(line) > MAX_LINE:
                    raise UserError(f"{name}, line {number}: longer than {MAX_LINE // 2**20} MiB. "
                                    "Expected JSONL: one row, one JSON object, on each line")
                if n_bytes > most:
                    raise UserError(f"{name}, line {number}: unpacks to more than {MAX_RATIO} times its size, which "
                                    "text does not. If you trust it, unpack it first")
                if line.strip():
                    yield "line", number, line.decode("utf-8")
                line, number = file.readline(MAX_LINE + 1), number + 1
    except UnicodeDecodeError as error:
        number += error.object.count(b"\n", 0, error.start)  # a JSON list is decoded whole
        raise UserError(f"{name}, line {number}: not UTF-8 text; expected JSONL, a JSON list, or gzip named .gz. "
                        "Save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror or error}. Give a readable file") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{name}: the gzip data is cut off or damaged ({error}). "
                        "Download or compress the file again") from None


def _list_items(path, text):
    try:
        items = _parse(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{named(path)}: starts like a JSON list, but is not one: {error}. "
                        "Expected [{...}, {...}] or JSONL, one object on each line") from None
    for number, item in enumerate(items, start=1):
        yield "item", number, item


def _parquet_rows(path):
    """Rows as Python objects. What pyarrow makes of damaged bytes is an error of any kind, from release to release."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{named(path)}: Parquet needs pyarrow: pip install pyarrow, or convert the file to "
                        "JSONL") from None
    number = 0
    try:
        file, size = ParquetFile(path), path.stat().st_size
        if file.metadata.num_rows > size:  # equal rows take next to nothing, and then fill the memory
            raise ValueError(f"{file.metadata.num_rows:,} rows in {size:,} bytes")
        for batch in file.iter_batches():
            for number, row in enumerate(batch.to_pylist(), start=number + 1):
                yield "row", number, row
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        where = f"damaged after row {number}" if number else "not a Parquet file, or a damaged one"
        why = one_line(" ".join(str(error).split()), 100)
        raise UserError(f"{named(path)}: {where} ({why}). Download or write the file again") from None


@dataclass(frozen=True)
class Twice:
    """Stands for a JSON object that has a field twice: which of the two was meant, nobody knows."""
    field: str


def _once(pairs):
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    return Twice(Counter(field for field, _ in pairs).most_common(1)[0][0])


def _parse(text):
    """JSON, with Twice in it. An integer that may be too large for a float is one: Python refuses 4,301 digits."""
    return json.loads(text, object_pairs_hook=_once,
                      parse_int=lambda digits: int(digits) if len(digits) < 300 else float(digits))


def _no_json(value):
    """Called for what json.dumps does not know."""
    if isinstance(value, Twice):
        raise BadRow("field given twice", shown(value.field, 40), "each field once")
    return str(value)  # Parquet also has dates and bytes


def _json_object(line):
    """One row of whatever file, as a dict whose text can be tokenised and printed as JSON. Raises BadRow."""
    try:
        row = _parse(line) if isinstance(line, str) else line
        # Half a surrogate pair is no text: it cannot be tokenised.
        size = len(json.dumps(row, ensure_ascii=False, default=_no_json).encode("utf-8"))
    except (ValueError, RecursionError):
        raise BadRow("not JSON", "(whole row)", "one JSON object of valid Unicode text") from None
    if size > MAX_LINE:  # of a list or a Parquet file
        raise BadRow("too long", "(whole row)", f"at most {MAX_LINE // 2**20} MiB")
    if not isinstance(row, dict):
        raise BadRow("wrong type", "(whole row)", f"a JSON object, not {kind(row)}")
    return row
