"""Preference data from a file: JSONL, JSONL.gz or a JSON list, in the public formats below, to rows of one shape.

The first row decides the format, by its fields; FORMATS is the order of detection. A row that cannot be used is dropped
and counted by its reason, or is an error that names its line when `strict`. A prompt is never guessed from the
characters that two strings share: two answers that start alike would lose their start to the prompt.
"""
import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nanopref.errors import UserError

# Format -> the fields every row must have.
FORMATS = {
    "align-anything": ("question", "response_1", "response_2", "overall_response"),  # overall_response: 1 or 2
    "unpaired": ("prompt", "completion", "label"),                  # KTO; label true: chosen, false: rejected
    "demonstrations": ("prompt", "completion"),                     # SFT
    "hh-rlhf": ("chosen", "rejected"),                              # "\n\nHuman: ...\n\nAssistant: ..." transcripts
    "messages": ("chosen", "rejected"),                             # message lists, `prompt` optional
    "pairs": ("prompt", "chosen", "rejected"),                      # strings
}
HH_START = "\n\nHuman:"


@dataclass(frozen=True)
class Row:
    """One preference. A demonstration has chosen only, an unpaired row one of the two; the other is None."""
    prompt: tuple         # of {"role", "content"}: ends with a user message
    chosen: str | None
    rejected: str | None
    line: int             # 1-based line of the file, or item of the JSON list


@dataclass(frozen=True)
class Dataset:
    """What `read` found in one file."""
    path: str
    format: str           # a key of FORMATS
    rows: list
    dropped: dict         # reason -> count
    n_lines: int          # lines (or items) that are not blank: len(rows) + all dropped

    def summary(self):
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        return (f"{self.path}: format {self.format}, {len(self.rows)} of {self.n_lines} rows kept"
                + (f"; dropped: {reasons}" if reasons else ""))


class BadRow(Exception):
    def __init__(self, reason, field, expected):
        super().__init__(f"field {field}: {reason}; expected {expected}")
        self.reason = reason


def read(path, strict=False):
    """Rows of the file at `path` as a Dataset.

    Raises UserError when the file cannot be read or is in no known format, when no row is usable, and, if `strict`, at
    the first row that would be dropped.
    """
    rows, dropped, known_format, n_lines = [], Counter(), None, 0
    unit, lines = _lines(path)
    for number, line in lines:
        n_lines += 1
        try:
            row = _json_object(line)
            known_format = known_format or _detect(row, path)
            rows.append(Row(*_parse(row, known_format), line=number))
        except BadRow as bad:
            if strict:
                raise UserError(f"{path}, {unit} {number}: {bad}. "
                                "Correct the row, or leave out --strict to drop such rows and count them") from None
            dropped[bad.reason] += 1
    data = Dataset(str(path), known_format or "unknown", rows, dict(dropped), n_lines)
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
    keys = [json.dumps(row.prompt) for row in rows]
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
    """("line" or "item", list of (1-based number, JSON text or parsed item)) of the file, blank lines left out."""
    opener = gzip.open if Path(path).suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; expected JSONL, a JSON list, or gzip named .gz") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if text.lstrip().startswith("["):  # a row is an object and starts with "{"
        try:
            return "item", list(enumerate(json.loads(text), start=1))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: starts like a JSON list, but is not one: {error}") from None
    return "line", [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _json_object(line):
    try:
        row = json.loads(line) if isinstance(line, str) else line
        json.dumps(row, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text: it cannot be tokenised
    except (ValueError, RecursionError):
        raise BadRow("not JSON", "(whole row)", "one JSON object of valid Unicode text") from None
    if not isinstance(row, dict):
        raise BadRow("wrong type", "(whole row)", f"a JSON object, not {type(row).__name__}")
    return row


def _detect(row, path):
    chosen = row.get("chosen")
    for name, fields in FORMATS.items():
        if not all(field in row for field in fields):
            continue
        if name == "hh-rlhf" and not (isinstance(chosen, str) and chosen.startswith(HH_START)):
            continue
        if name == "messages" and not isinstance(chosen, list):
            continue
        return name
    known = "; ".join(f"{name} ({', '.join(fields)})" for name, fields in FORMATS.items())
    raise UserError(f"{path}: unknown format with fields {', '.join(sorted(row)) or '(none)'}. "
                    f"Rename them to one of: {known}")


def _parse(row, known_format):
    """(prompt messages, chosen text or None, rejected text or None); raises BadRow."""
    for field in FORMATS[known_format]:
        if field not in row:
            raise BadRow("missing field", field, f"fields {', '.join(FORMATS[known_format])}")
    prompt_field, fields = "prompt", ("chosen", "rejected")
    if known_format == "align-anything":
        prompt_field, fields = "question", _preferred_first(row)
    elif known_format == "demonstrations":
        fields = ("completion", None)
    elif known_format == "unpaired":
        if not isinstance(row["label"], bool):
            raise BadRow("wrong type", "label", "true or false")
        fields = ("completion", None) if row["label"] else (None, "completion")

    turns = {}
    for field in fields:
        if field is not None:
            turns[field] = _transcript(row, field) if known_format == "hh-rlhf" else _turns(row, prompt_field, field)
    if None not in fields and turns[fields[0]][:-1] != turns[fields[1]][:-1]:
        raise BadRow("different prefixes", fields[1], f"the same messages as {fields[0]} up to the last one")
    for field in turns:
        _check_conversation(turns[field], prompt_field, field)
    # A response is stripped: the chat layout already marks where it starts and ends, so the space of "Assistant: text"
    # is no part of the answer, and a stray newline on one side only would be learned as the preference.
    chosen, rejected = [turns[field][-1]["content"].strip() if field else None for field in fields]
    if chosen == rejected:
        raise BadRow("identical", fields[1], f"a text other than {fields[0]}")
    return tuple(next(iter(turns.values()))[:-1]), chosen, rejected


def _preferred_first(row):
    preferred = row["overall_response"]
    if type(preferred) is not int or preferred not in (1, 2):  # type: true == 1 in Python
        raise BadRow("no preference", "overall_response", "1 or 2: the number of the better response")
    return ("response_1", "response_2") if preferred == 1 else ("response_2", "response_1")


def _transcript(row, field):
    """The turns of an HH-RLHF transcript as messages."""
    if not isinstance(row[field], str):
        raise BadRow("wrong type", field, "a string")
    before, *parts = re.split(r"\n\n(Human|Assistant):", row[field])
    if before:
        raise BadRow("roles do not alternate", field, f"a transcript that starts with {HH_START!r}")
    role = {"Human": "user", "Assistant": "assistant"}
    return [{"role": role[name], "content": text.strip()} for name, text in zip(parts[::2], parts[1::2])]


def _turns(row, prompt_field, field):
    """The conversation of one side: the prompt's messages, then the answer's."""
    prompt = _messages(row[prompt_field], prompt_field, "user") if prompt_field in row else []
    answer = _messages(row[field], field, "assistant")
    if not answer:
        raise BadRow("empty response", field, "at least one message")
    # UltraFeedback repeats the prompt at the start of both sides; elsewhere both sides continue it.
    return answer if answer[:len(prompt)] == prompt else prompt + answer


def _messages(value, field, role):
    """A string is one message of `role`; a list of messages is checked and cut down to role and content."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list) and all(isinstance(message, dict) and isinstance(message.get("role"), str)
                                       and isinstance(message.get("content"), str) for message in value):
        return [{"role": message["role"], "content": message["content"]} for message in value]
    raise BadRow("wrong type", field, 'a string or a list of {"role": string, "content": string}')


def _check_conversation(turns, prompt_field, field):
    """Raises BadRow unless `turns` is a prompt that says something and an assistant's answer that says something."""
    roles = [message["role"] for message in turns]
    if "user" not in roles:
        raise BadRow("empty prompt", prompt_field, "at least one user message")
    if roles[0] == "system":
        roles = roles[1:]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise BadRow("roles do not alternate", field, "an optional system message, then user and assistant in turn, "
                     f"ending with assistant; found {', '.join(roles)}")
    if not turns[-2]["content"].strip():
        raise BadRow("empty prompt", prompt_field, "a last user message that is not blank")
    if not turns[-1]["content"].strip():
        raise BadRow("empty response", field, "text that is not blank")
