import datetime
import gzip
import json
import os
import re
import sys
import time
import tracemalloc
import types
from pathlib import Path

import pytest

from nanopref.data import files, hub
from nanopref.errors import UserError

HH_FILE = Path(__file__).parents[2] / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def write(path, *rows):
    """JSONL, a string standing for a raw line."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


Q = user("2+2?")
PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
HH = {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"}
LISTS = {"chosen": [Q, assistant("4")], "rejected": [Q, assistant("5")]}
ULTRA = {"prompt": "2+2?", "prompt_id": "a", "messages": LISTS["chosen"], "score_chosen": 8.0, "score_rejected": 6.5,
         **LISTS}
ALIGN = {"question": "2+2?", "response_1": "4", "response_2": "5", "overall_response": 1}
PKU = {"prompt": "2+2?", "response_0": "4", "response_1": "5", "better_response_id": 0, "safer_response_id": 1,
       "is_response_0_safe": True, "is_response_1_safe": True}
UNPAIRED = {"prompt": "2+2?", "completion": "4", "label": True}
ALPACA = {"instruction": "2+2?", "input": "", "chosen": "4", "rejected": "5"}
ALPACA_UNPAIRED = {"instruction": "2+2?", "input": "", "output": "4", "kto_tag": True}
SHAREGPT = {"conversations": [{"from": "human", "value": "2+2?"}], "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"}}
SHAREGPT_UNPAIRED = {"conversations": [*SHAREGPT["conversations"], SHAREGPT["chosen"]], "kto_tag": True}
SWIFT = {"messages": LISTS["chosen"], "rejected_response": "5"}
SWIFT_UNPAIRED = {"messages": LISTS["chosen"], "label": True}
ORCA = {"system": "", "question": "2+2?", "chosen": "4", "rejected": "5"}

LONG = [system("Add."), user("Hi"), assistant("Hello"), Q]  # a prompt of several turns
LONG_LISTS = {"chosen": [*LONG, assistant("4")], "rejected": [*LONG, assistant("5")]}
ALPACA_LONG = {"instruction": "2+2?", "system": "Add.", "history": [["Hi", "Hello"]]}
SHAREGPT_LONG = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, *SHAREGPT["conversations"]]


def without(row, *fields):
    return {field: value for field, value in row.items() if field not in fields}


@pytest.mark.parametrize("row, name, prompt, chosen, rejected", [
    (ALIGN, "align-anything", [Q], "4", "5"),
    ({**ALIGN, "overall_response": 2}, "align-anything", [Q], "5", "4"),
    ({**ALIGN, "question": LONG}, "align-anything", LONG, "4", "5"),
    (HH, "hh-rlhf", [Q], "4", "5"),
    ({side: "\n\nHuman: Hi\n\nAssistant: Hello" + text for side, text in HH.items()}, "hh-rlhf", LONG[1:], "4", "5"),
    ({"prompt": "2+2?", "chosen": " 4", "rejected": " 5"}, "pairs", [Q], "4", "5"),
    ({**PAIR, "system": "Add."}, "pairs", [system("Add."), Q], "4", "5"),
    ({"prompt": [Q], "chosen": [assistant("4")], "rejected": [assistant("5")]}, "messages", [Q], "4", "5"),
    ({"prompt": LONG, "chosen": [assistant("4")], "rejected": [assistant("5")]}, "messages", LONG, "4", "5"),
    (LISTS, "messages", [Q], "4", "5"),
    (LONG_LISTS, "messages", LONG, "4", "5"),
    ({"prompt": "Hi", **LONG_LISTS}, "messages", LONG, "4", "5"),  # the first message again, as in orpo-dpo-mix-40k
    ({"prompt": [user("a")], "chosen": [assistant("b"), user("a"), assistant("c")],
      "rejected": [assistant("b"), user("a"), assistant("d")]}, "messages",
     [user("a"), assistant("b"), user("a")], "c", "d"),
    (ULTRA, "ultrafeedback", [Q], "4", "5"),
    ({**ULTRA, **LONG_LISTS}, "ultrafeedback", LONG, "4", "5"),
    (UNPAIRED, "unpaired", [Q], "4", None),
    ({**UNPAIRED, "label": False}, "unpaired", [Q], None, "4"),
    ({"prompt": LONG, "completion": [assistant("4")], "label": True}, "unpaired", LONG, "4", None),
    ({"prompt": "2+2?", "completion": "4"}, "demonstrations", [Q], "4", None),
    ({"prompt": LONG, "completion": "4"}, "demonstrations", LONG, "4", None),
    (ALPACA, "alpaca", [Q], "4", "5"),
    ({**ALPACA, "input": "Think.", "output": "x"}, "alpaca", [user("2+2?\nThink.")], "4", "5"),
    ({**ALPACA_LONG, "chosen": "4", "rejected": "5"}, "alpaca", LONG, "4", "5"),
    ({**ALPACA, "input": None, "system": None, "history": None}, "alpaca", [Q], "4", "5"),
    (ALPACA_UNPAIRED, "alpaca-unpaired", [Q], "4", None),
    ({**ALPACA_UNPAIRED, **ALPACA_LONG, "kto_tag": False}, "alpaca-unpaired", LONG, None, "4"),
    (without(ALPACA_UNPAIRED, "kto_tag"), "alpaca-demonstrations", [Q], "4", None),
    ({"instruction": "2+2?", "chosen": "4", "rejected": "5"}, "alpaca", [Q], "4", "5"),  # xfactlab
    ({"question": "2+2?", "chosen": "4", "rejected": "5"}, "question-pairs", [Q], "4", "5"),  # xfactlab
    (ORCA, "question-pairs", [Q], "4", "5"),
    ({**ORCA, "system": "Add."}, "question-pairs", [system("Add."), Q], "4", "5"),
    (SHAREGPT, "sharegpt", [Q], "4", "5"),
    ({**SHAREGPT, "system": "Add.", "conversations": SHAREGPT_LONG}, "sharegpt", LONG, "4", "5"),
    (SHAREGPT_UNPAIRED, "sharegpt-unpaired", [Q], "4", None),
    ({"system": "Add.", "conversations": [*SHAREGPT_LONG, SHAREGPT["chosen"]], "kto_tag": False},
     "sharegpt-unpaired", LONG, None, "4"),
    ({"conversations": SHAREGPT_UNPAIRED["conversations"]}, "sharegpt-demonstrations", [Q], "4", None),
    (SWIFT, "ms-swift", [Q], "4", "5"),
    ({"messages": LONG_LISTS["chosen"], "rejected_response": "5"}, "ms-swift", LONG, "4", "5"),
    ({"messages": LONG_LISTS["chosen"], "rejected_messages": LONG_LISTS["rejected"]}, "ms-swift-lists", LONG, "4", "5"),
    (SWIFT_UNPAIRED, "ms-swift-unpaired", [Q], "4", None),
    ({"messages": LONG_LISTS["chosen"], "label": False}, "ms-swift-unpaired", LONG, None, "4"),
    ({"messages": LONG_LISTS["chosen"]}, "ms-swift-demonstrations", LONG, "4", None),
])
def test_row_of_every_format(tmp_path, row, name, prompt, chosen, rejected):
    for strict in (False, True):
        read = files.read(write(tmp_path / "d.jsonl", row), strict=strict)
        assert read.format == name and read.dropped == {} and read.n_lines == 1
        assert [(r.prompt, r.chosen, r.rejected, r.line) for r in read.rows] == [(tuple(prompt), chosen, rejected, 1)]


def test_pku_saferlhf_needs_an_axis_and_counts_from_zero(tmp_path):
    path = write(tmp_path / "d.jsonl", PKU)
    for axis, chosen, rejected in (("better", "4", "5"), ("safer", "5", "4")):
        read = files.read(path, axis=axis)
        assert read.format == "pku-saferlhf"
        assert read.rows == [files.Row((Q,), chosen, rejected, 1, preferred=1 if axis == "better" else 2)]
    for axis in (None, "helpful"):
        with pytest.raises(UserError) as error:
            files.read(path, axis=axis)
        assert str(error.value).startswith(f"{path}, line 1: PKU-SafeRLHF ranks by helpfulness and by safety")
        assert "disagree" in str(error.value) and "--axis better or --axis safer" in str(error.value)
    path = write(tmp_path / "d.jsonl", PKU, {**PKU, "better_response_id": 2})
    assert files.read(path, axis="better").dropped == {"label out of range": 1}
    assert files.read(path, axis="safer").dropped == {}
    with pytest.raises(UserError, match="line 2: field better_response_id: label out of range; expected 0 or 1 .* 2"):
        files.read(path, axis="better", strict=True)
    with pytest.raises(UserError, match="--axis better is for PKU-SafeRLHF data, and this is pairs"):
        files.read(write(tmp_path / "d.jsonl", PAIR), axis="better")


@pytest.mark.parametrize("first, other, formats", [
    (PAIR, ALIGN, ("pairs", "align-anything")),
    (PAIR, LISTS, ("pairs", "messages")),
    (HH, PAIR, ("hh-rlhf", "pairs")),
    (UNPAIRED, without(UNPAIRED, "label"), ("unpaired", "demonstrations")),  # without its label it would count as good
    (without(UNPAIRED, "label"), {**UNPAIRED, "label": False}, ("demonstrations", "unpaired")),
    (ALPACA, ALPACA_UNPAIRED, ("alpaca", "alpaca-unpaired")),
    (SWIFT, SWIFT_UNPAIRED, ("ms-swift", "ms-swift-unpaired")),
])
def test_two_formats_in_one_file_are_an_error(tmp_path, first, other, formats):
    path = write(tmp_path / "d.jsonl", first, other)
    for strict in (False, True):
        with pytest.raises(UserError) as error:
            files.read(path, strict=strict)
        assert str(error.value).startswith(
            f"{path}, line 2: a row in format {formats[1]} in a file in format {formats[0]}. Keep one format per file")


BLANK = " \n\t"
BAD = [  # a good row, then the bad one, its reason, its field and what the message says was expected
    (PAIR, "{not json", "not JSON", "(whole row)", "one JSON object"),
    (PAIR, '{"prompt": "\\ud800", "chosen": "4", "rejected": "5"}', "not JSON", "(whole row)", "valid Unicode"),
    (PAIR, "[" * 100_000, "not JSON", "(whole row)", "one JSON object"),
    (PAIR, '{"x": ' * 5000 + "1" + "}" * 5000, "not JSON", "(whole row)", "one JSON object"),
    (PAIR, '{"prompt": "2+2?", "chosen": "4", "rejected": "5", "chosen": "6"}',
     "field given twice", "'chosen'", "each field once"),
    (LISTS, json.dumps(LISTS).replace('"content": "4"', '"content": "3", "content": "4"'),
     "field given twice", "'content'", "each field once"),
    (PAIR, '{"\\u001b[2J": 1, "\\u001b[2J": 2}', "field given twice", "'\\x1b[2J'", "each field once"),
    (PAIR, '"text"', "wrong type", "(whole row)", "a JSON object, not string"),
    (PAIR, {"prompt": "2+2?", "chosen": "4"}, "missing field", "rejected", "fields prompt, chosen, rejected"),
    (PAIR, {**PAIR, "rejected": None}, "wrong type", "rejected", "a string or a list"),
    (PAIR, {**PAIR, "prompt": 4}, "wrong type", "prompt", "a string or a list"),
    (PAIR, {**PAIR, "prompt": BLANK}, "empty prompt", "prompt", "not blank"),
    (PAIR, {**PAIR, "prompt": ""}, "empty prompt", "prompt", "not blank"),
    (PAIR, {**PAIR, "chosen": BLANK}, "empty response", "chosen", "not blank"),
    (PAIR, {**PAIR, "rejected": ""}, "empty response", "rejected", "not blank"),
    (PAIR, {**PAIR, "rejected": " 4\n"}, "identical", "rejected", "other than that of chosen"),
    (LISTS, {**LISTS, "chosen": [Q, {"role": "assistant", "content": None}]}, "wrong type", "chosen", "content"),
    (LISTS, {**LISTS, "chosen": ["4"]}, "wrong type", "chosen", "role"),
    (LISTS, {**LISTS, "chosen": [user("3+3?"), assistant("6")]},
     "different prefixes", "rejected", "up to the last one"),
    (LISTS, {**LISTS, "chosen": []}, "empty response", "chosen", "at least one message"),
    (LISTS, {"chosen": [assistant("4")], "rejected": [assistant("5")]}, "empty prompt", "chosen", "one user message"),
    (LISTS, {"prompt": [], **LISTS}, "empty prompt", "prompt", "at least one message"),
    (LISTS, {**LISTS, "prompt": [system("Add.")], "chosen": [assistant("4")]},
     "different prefixes", "rejected", "up to the last one"),
    (LISTS, {"prompt": [Q], "chosen": None, "rejected": None}, "wrong type", "chosen", "a string or a list"),
    (LISTS, {"chosen": [Q, Q, assistant("4")], "rejected": [Q, Q, assistant("5")]},
     "roles do not alternate", "chosen", "found user, user, assistant"),
    (LISTS, {"chosen": [Q, user("4")], "rejected": [Q, user("5")]},
     "roles do not alternate", "chosen", "found user, user"),
    (LISTS, {**LISTS, "chosen": [Q, {"role": "\x1b[2J\n" + "x" * 999, "content": "4"}]},
     "roles do not alternate", "chosen", "found user, '\\x1b"),
    (SWIFT_UNPAIRED, {**SWIFT_UNPAIRED, "messages": [Q] * 200},
     "roles do not alternate", "messages", "found user, user, user, user, ..."),
    (LISTS, {"prompt": "another prompt", **LISTS}, "roles do not alternate", "chosen", "found user, user, assistant"),
    (HH, {"chosen": "", "rejected": ""}, "empty prompt", "chosen", "starts with"),
    (HH, {**HH, "chosen": 4}, "wrong type", "chosen", "a string"),
    (HH, {**HH, "rejected": "Hi. " + HH["rejected"]}, "roles do not alternate", "rejected", "starts with"),
    (HH, {**HH, "chosen": "\n\nHuman: 3+3?\n\nAssistant: 6"}, "different prefixes", "rejected", "up to the last one"),
    (HH, {side: HH["chosen"] + "\n\nAssistant: " + side for side in HH},
     "roles do not alternate", "chosen", "found user, assistant, assistant"),
    (HH, {side: HH["chosen"] + "\n\nHuman: ok" for side in HH},
     "roles do not alternate", "chosen", "ending with assistant; found user, assistant, user"),
    (HH, {**HH, "chosen": "\n\nHuman: 2+2?\n\nAssistant: "}, "empty response", "chosen", "not blank"),
    (ALIGN, {**ALIGN, "overall_response": 3}, "label out of range", "overall_response", "1 or 2"),
    (ALIGN, {**ALIGN, "overall_response": 0}, "label out of range", "overall_response", "1 or 2"),
    (ALIGN, {**ALIGN, "overall_response": True}, "label out of range", "overall_response", "1 or 2"),
    (ALIGN, {**ALIGN, "question": ""}, "empty prompt", "question", "not blank"),
    (ALIGN, {**ALIGN, "overall_response": None}, "label out of range", "overall_response", "not null"),
    (ULTRA, {**ULTRA, "score_rejected": 8}, "tie", "score_rejected", "a score other than score_chosen"),
    (ULTRA, {**ULTRA, "rejected": LISTS["chosen"]}, "identical", "rejected", "that of chosen"),
    (UNPAIRED, {**UNPAIRED, "label": "yes"}, "label out of range", "label", "true or false, not 'yes'"),
    (UNPAIRED, {**UNPAIRED, "label": 2}, "label out of range", "label", "true or false, not 2"),
    (UNPAIRED, {**UNPAIRED, "label": "\x1b[2J" + "x" * 99_999}, "label out of range", "label", "not '\\x1b"),
    (UNPAIRED, json.dumps({**UNPAIRED, "label": None}).replace("null", "1" * 5000),
     "label out of range", "label", "true or false, not inf"),
    (ALIGN, json.dumps({**ALIGN, "overall_response": None}).replace("null", "[" * 450 + "]" * 450),
     "label out of range", "overall_response", "[[[[["),
    (UNPAIRED, {**UNPAIRED, "label": 1}, "label out of range", "label", "true or false, not 1"),
    (SWIFT_UNPAIRED, {**SWIFT_UNPAIRED, "label": None}, "label out of range", "label", "true or false, not null"),
    (ALPACA_UNPAIRED, {**ALPACA_UNPAIRED, "kto_tag": None}, "label out of range", "kto_tag", "true or false, not null"),
    (SHAREGPT_UNPAIRED, {**SHAREGPT_UNPAIRED, "kto_tag": "no"}, "label out of range", "kto_tag", "true or false"),
    (ALPACA_UNPAIRED, {**ALPACA_UNPAIRED, "output": ""}, "empty response", "output", "not blank"),
    (ALPACA, {**ALPACA, "instruction": None}, "empty prompt", "instruction", "not blank"),
    (ALPACA, {**ALPACA, "input": 3}, "wrong type", "input", "a string"),
    (ALPACA, {**ALPACA, "history": ["Hi", "Hello"]}, "wrong type", "history", "[user, assistant] pairs"),
    (ALPACA, {**ALPACA, "history": 1}, "wrong type", "history", "[user, assistant] pairs"),
    (ORCA, {**ORCA, "system": ["Add."]}, "wrong type", "system", "a string"),
    (ORCA, {**ORCA, "question": " "}, "empty prompt", "question", "not blank"),
    (SHAREGPT, {**SHAREGPT, "conversations": []}, "empty prompt", "conversations", "at least one message"),
    (SHAREGPT, {**SHAREGPT, "conversations": SHAREGPT_UNPAIRED["conversations"]},
     "roles do not alternate", "chosen", "found user, assistant, assistant"),
    (SHAREGPT, {**SHAREGPT, "rejected": {"from": "gpt"}}, "wrong type", "rejected", '"content": string'),
    (SWIFT, {**SWIFT, "messages": [Q]}, "roles do not alternate", "messages", "found user"),
    (SWIFT, {**SWIFT, "rejected_response": "4"}, "identical", "rejected_response", "that of messages"),
    (SWIFT, {**SWIFT, "rejected_response": None}, "wrong type", "rejected_response", "a string"),
    (UNPAIRED, {**UNPAIRED, "completion": BLANK}, "empty response", "completion", "not blank"),
]


@pytest.mark.parametrize("good, bad, reason, field, expected", BAD)
def test_bad_row_is_dropped_and_counted_or_named(tmp_path, good, bad, reason, field, expected):
    path = write(tmp_path / "d.jsonl", good, "", bad, good)  # the blank line is no row, but it is a line
    read = files.read(path)
    assert [row.line for row in read.rows] == [1, 4]
    assert read.dropped == {reason: 1} and read.n_lines == 3
    assert read.summary() == f"{path}: format {read.format}, 2 of 3 rows kept; dropped: 1 {reason} (first: line 3)"
    with pytest.raises(UserError) as error:
        files.read(path, strict=True)
    message = str(error.value)
    assert message.startswith(f"{path}, line 3: field {field}: {reason}; expected ")
    assert expected in message and "Correct the row, or leave out --strict" in message
    assert message.isprintable() and len(message) <= 300


def test_prompt_is_not_guessed_from_shared_characters(tmp_path):
    row = {"prompt": "Q", "chosen": " The cat sat.", "rejected": "The cap"}
    assert files.read(write(tmp_path / "d.jsonl", row)).rows == [files.Row((user("Q"),), "The cat sat.", "The cap", 1)]
    row = {side: f"\n\nHuman: Q\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
    assert files.read(write(tmp_path / "d.jsonl", row)).rows == [files.Row((user("Q"),), "The cat sat.", "The cap", 1)]


def test_a_long_conversation_takes_no_longer_per_turn(tmp_path):
    """6,000 turns, also in the prompt: compared each with each they took half a minute, where they now take 0.3 s."""
    past = [turn(str(i)) for i in range(3000) for turn in (user, assistant)] + [Q]
    row = {"prompt": past, "chosen": [*past, assistant("4")], "rejected": [*past, assistant("5")]}
    began = time.perf_counter()
    assert files.read(write(tmp_path / "d.jsonl", row)).rows[0].prompt == tuple(past)
    assert time.perf_counter() - began < 5


def test_inner_text_is_kept_as_it_is(tmp_path):
    code = "def f():\n    return  1\n\n\n# \u2028 end"
    rows = files.read(write(tmp_path / "d.jsonl", {**PAIR, "chosen": f" {code}\n", "prompt": " 2+2?\n"})).rows
    assert rows[0].chosen == code
    assert rows[0].prompt == (user(" 2+2?\n"),)


def test_same_rows_from_jsonl_gzip_and_json_list(tmp_path):
    second = {**PAIR, "prompt": "naïve \u2028?"}  # U+2028 ends a line for str.splitlines, not for JSONL
    jsonl = tmp_path / "d.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in (PAIR, second)]
    jsonl.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    zipped = tmp_path / "d.jsonl.gz"
    zipped.write_bytes(gzip.compress(jsonl.read_bytes()))
    listed = tmp_path / "d.json"
    listed.write_text(json.dumps([PAIR, second], indent=1))
    expected = [files.Row((user(row["prompt"]),), "4", "5", line) for line, row in enumerate((PAIR, second), start=1)]
    for path in (jsonl, zipped, listed):
        assert files.read(path).rows == expected
    listed.write_text(json.dumps([PAIR, {**PAIR, "chosen": ""}]))
    with pytest.raises(UserError, match="item 2: field chosen"):
        files.read(listed, strict=True)


def test_names_of_fields_are_shown_and_not_obeyed(tmp_path):
    """A name is the file's own: this one clears the screen, another is as long as a book."""
    path = write(tmp_path / "d.jsonl", {"\x1b[2J\n": 1, "x" * 130_000: 2, **{str(i): 0 for i in range(20)}})
    with pytest.raises(UserError) as error:
        files.read(path)
    message = str(error.value)
    assert message.isprintable() and len(message) <= 300
    assert "fields '\\x1b[2J\\n' (int), '0' (int), '1' (int), '10' (int) and 18 more. Rename" in message


def test_unknown_format_names_file_fields_and_formats(tmp_path):
    without_rejected = {"prompt": "2+2?", "chosen": "4"}
    for row in ({"ask": "2+2?", "answer": "4"}, {"chosen": "4", "rejected": "5"}, without_rejected):
        path = write(tmp_path / "d.jsonl", row)
        with pytest.raises(UserError) as error:
            files.read(path)
        message = str(error.value)
        fields = ", ".join(f"{field!r} (string)" for field in sorted(row))
        assert message.startswith(f"{path}, line 1: unknown format with fields {fields}. Rename them to prompt, ")
        assert message.endswith("another format in nanopref/data/README.md") and len(message) <= 300


@pytest.mark.parametrize("name, content, expected", [
    ("empty.jsonl", b"", "holds no rows"),
    ("blank.jsonl", b"\n \n", "holds no rows"),
    ("list.json", b"[]", "holds no rows"),
    ("broken.json", b'[{"prompt": "2+2?"},', "starts like a JSON list"),
    ("not_gzip.jsonl.gz", b'{"prompt": 1}', "cannot be read: Not a gzipped file"),
    ("cut.jsonl.gz", gzip.compress(json.dumps(PAIR).encode() * 9)[:-12], "the gzip data is cut off or damaged"),
    ("flipped.jsonl.gz", gzip.compress(b"{}")[:10] + b"\xff" * 20, "the gzip data is cut off or damaged"),
    ("unnamed_gzip.jsonl", gzip.compress(b"{}"), "line 1: not UTF-8 text; expected JSONL, a JSON list, or gzip named"),
    ("latin.jsonl", json.dumps(PAIR).encode() + b'\n{"prompt": "na\xefve"}\n', "line 2: not UTF-8 text"),
    ("latin.json", b'[\n\n"na\xefve"]', "line 3: not UTF-8 text"),
    ("zeros.jsonl", b"\x00" * 64, "1 not JSON (first: line 1)"),
    ("bomb.jsonl.gz", gzip.compress((b" " * 999 + b"\n") * 40_000), "unpacks to more than 200 times its size"),
    ("bomb.json.gz", gzip.compress(b"[" + b" " * 30 * 2**20), "a JSON list of more than 21 MiB, and it is read whole"),
    ("digits.json", b"[{" + b"1" * 5000 + b"}]", "starts like a JSON list"),
    ("deep.json", b"[" * 5000, "starts like a JSON list"),
    ("utf16.jsonl", json.dumps(PAIR).encode("utf-16"), "line 1: not UTF-8 text"),
    ("old_mac.jsonl", json.dumps(PAIR).encode() + b"\r" + json.dumps(PAIR).encode(), "1 not JSON (first: line 1)"),
    ("all_bad.jsonl", json.dumps({**PAIR, "chosen": ""}).encode(), "no usable row in"),
])
def test_unusable_file(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        files.read(tmp_path / name)
    message = str(error.value)
    assert str(tmp_path / name) in message and message.isprintable() and len(message) <= 300


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file or directory"):
        files.read(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="a directory; give one file in it"):
        files.read(tmp_path)
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with pytest.raises(UserError, match="loop.jsonl: cannot be read: Too many levels of symbolic links"):
        files.read(tmp_path / "loop.jsonl")
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        files.read(tmp_path / ("x" * 300))


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    """One that nobody writes to keeps its reader waiting, and /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", Path("/dev/zero")):
        for read in (files.read, hub.data_files):
            with pytest.raises(UserError, match=f"^{path}: a pipe or a device; save what it gives as a file"):
                read(path)


def test_line_that_would_fill_the_memory(tmp_path):
    """A line is read up to MAX_LINE and no further: 200 MiB without a line end take less than 3 MAX_LINE (one piece of
    the file, and the copy that the reader grows it in)."""
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(PAIR) + "\n")
    with open(path, "r+b") as file:
        file.truncate(200 * 2**20)  # zeros up to there, and no line end
    tracemalloc.start()
    with pytest.raises(UserError, match=re.escape(f"{path}, line 2: longer than 16 MiB. Expected JSONL")):
        files.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * files.MAX_LINE


def test_longest_line_that_is_read(tmp_path, monkeypatch):
    line = json.dumps(PAIR) + "\n"
    monkeypatch.setattr(files, "MAX_LINE", len(line))
    path = tmp_path / "d.jsonl"
    path.write_text(line * 2)
    assert len(files.read(path).rows) == 2
    path.write_text(line + " " + line)
    with pytest.raises(UserError, match="line 2: longer than"):
        files.read(path)


def test_summary_names_where_each_reason_was_met_first(tmp_path):
    empty, same = {**PAIR, "chosen": ""}, {**PAIR, "chosen": "5"}
    path = write(tmp_path / "d.jsonl", PAIR, "", same, empty, same, empty, empty)
    assert files.read(path).summary() == (f"{path}: format pairs, 1 of 6 rows kept; dropped: "
                                         "3 empty response (first: line 4), 2 identical (first: line 3)")
    path.write_text(json.dumps([PAIR, same]))
    assert files.read(path).first == {"identical": "item 2"}


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="Parquet needs pyarrow: pip install pyarrow, or convert the file to JSONL"):
        files.read(tmp_path / "d.parquet")


def test_parquet_rows_are_numbered_across_batches(tmp_path, monkeypatch):
    """A stand-in for pyarrow, which is no dependency: two batches, with dates, which JSON does not have, and nulls."""
    class Batch(list):
        to_pylist = list.copy

    class ParquetFile:
        def __init__(self, path):
            if not path.exists():
                raise FileNotFoundError(2, "No such file or directory")
            if path.read_bytes() != b"PAR1":
                raise ValueError("Parquet magic bytes not found in footer.\nEither the file is corrupted.")

        metadata = types.SimpleNamespace(num_rows=3)

        def iter_batches(self):
            made = datetime.date(2024, 1, 1)
            return [Batch([{**ALPACA, "history": None, "made": made}]), Batch([{**ALPACA, "chosen": None}, ALPACA])]

    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", types.SimpleNamespace(ParquetFile=ParquetFile))
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1")
    read = files.read(path)
    assert read.rows == [files.Row((Q,), "4", "5", 1), files.Row((Q,), "4", "5", 3)]
    assert read.first == {"wrong type": "row 2"}
    path.write_bytes(b"other")
    with pytest.raises(UserError, match=r"not a Parquet file, .* \(Parquet magic bytes not found in footer. Either"):
        files.read(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        files.read(tmp_path / "missing.parquet")


def test_real_parquet_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([ULTRA, {**ULTRA, "score_rejected": 8.0}]), path)
    assert files.read(path).rows == [files.Row((Q,), "4", "5", 1, scores=(8.0, 6.5))]
    assert files.read(path).first == {"tie": "row 2"}
    path.write_bytes(b"PAR1" * 9)
    with pytest.raises(UserError, match="not a Parquet file"):
        files.read(path)
    with pytest.raises(UserError, match="cannot be read: .*No such file"):
        files.read(tmp_path / "missing.parquet")


def rows_with_prompts(prompts):
    return [files.Row((user(prompt),), f"answer {i}", None, i) for i, prompt in enumerate(prompts, start=1)]


def test_split_keeps_a_prompt_on_one_side():
    rows = rows_with_prompts([str(i % 40) for i in range(100)])  # prompts 0..19 three times, 20..39 twice
    train, test = files.split(rows, 0.2, seed=0)
    assert not {row.prompt[0]["content"] for row in train} & {row.prompt[0]["content"] for row in test}
    assert sorted(train + test, key=lambda row: row.line) == rows
    assert len(test) in (20, 21, 22)  # 20 wanted; the last prompt brings at most two rows more
    assert (train, test) == files.split(rows, 0.2, seed=0)
    assert test != files.split(rows, 0.2, seed=1)[1]


def test_split_is_exact_and_does_not_depend_on_order():
    rows = rows_with_prompts([str(i) for i in range(50)])
    train, test = files.split(rows, 0.1, seed=3)
    assert (len(train), len(test)) == (45, 5)
    assert files.split(rows[::-1], 0.1, seed=3)[1] == test[::-1]
    assert files.split(rows, 0, seed=3) == (rows, [])


def test_split_that_leaves_nothing_to_train_on():
    with pytest.raises(UserError, match="1 different prompts leaves none to train on"):
        files.split(rows_with_prompts(["same"] * 4), 0.5, seed=0)
    for fraction in (1, -0.1):
        with pytest.raises(UserError, match=f"test_fraction is {fraction}"):
            files.split(rows_with_prompts(["a", "b"]), fraction, seed=0)


@pytest.mark.skipif(not HH_FILE.exists(), reason="the HH-RLHF harmless-base test split is not beside the repository")
def test_real_hh_rlhf_file():
    """The counts were made by looking at the rows. In 5 rows the sides differ before the last answer (on one side two
    answers follow each other). In 4 more both sides share a prompt with two answers in a row, and 4 have an empty
    chosen answer."""
    read = files.read(HH_FILE)
    assert (read.format, read.n_lines, len(read.rows)) == ("hh-rlhf", 2312, 2299)
    assert read.dropped == {"different prefixes": 5, "empty response": 4, "roles do not alternate": 4}
    assert read.first == {"different prefixes": "line 1255", "empty response": "line 87",
                          "roles do not alternate": "line 668"}
    lines = {row.line for row in read.rows}
    assert set(range(1, 2313)) - lines == {1255, 1689, 1951, 1953, 2037, 87, 517, 926, 1104, 668, 764, 1320, 1850}
    assert read.rows[0].prompt[0]["role"] == "user" and read.rows[0].prompt[-1]["role"] == "user"
    with pytest.raises(UserError, match="line 87: field chosen: empty response"):
        files.read(HH_FILE, strict=True)
    train, test = files.split(read.rows, 0.1, seed=0)
    assert len(train) + len(test) == 2299 and 230 <= len(test) <= 232


RANKED = {"prompt": "2+2?", "ranked": ["4", " four ", "5"], "scores": [3, 2.5, -1]}


@pytest.mark.parametrize("row, expected", [
    ({**ALIGN, "gold_1": 1.0, "gold_2": 3}, {"preferred": 1, "scores": (1.0, 3.0)}),  # in the order chosen, rejected
    ({**ALIGN, "overall_response": 2, "gold_1": 1.0, "gold_2": 3}, {"preferred": 2, "scores": (3.0, 1.0)}),
    (ULTRA, {"scores": (8.0, 6.5)}),
    ({**PAIR, "score_chosen": 2, "score_rejected": 1, "group": "curious"}, {"scores": (2.0, 1.0), "group": "curious"}),
    ({**PAIR, "score_chosen": None, "score_rejected": 1, "group": None}, {}),  # null is the same as absent
    (RANKED, {"between": ("four",), "scores": (3.0, 2.5, -1.0)}),
    (without(RANKED, "scores"), {"between": ("four",)}),
    ({"prompt": "2+2?", "ranked": ["4", "5"]}, {}),
    # What cannot be used is as good as absent: a row must not be lost to a loss that asks for neither.
    ({**RANKED, "scores": [3, 2]}, {"between": ("four",)}), ({**RANKED, "scores": [3, 2, "1"]}, {"between": ("four",)}),
    ({**RANKED, "scores": 3}, {"between": ("four",)}), ({**PAIR, "score_chosen": True, "score_rejected": 1}, {}),
    ({**PAIR, "group": 3}, {}), ({**PAIR, "score_chosen": 10**400, "score_rejected": 1}, {}),
    ({**PAIR, "score_chosen": 10**308, "score_rejected": -5}, {"scores": (1e308, -5.0)}),
    ({**PAIR, "score_chosen": float("nan"), "score_rejected": 1}, {}), ({**RANKED, "scores": [3, 2, -10**400]},
                                                                        {"between": ("four",)}),
])
def test_what_a_row_says_besides(tmp_path, row, expected):
    found, = files.read(write(tmp_path / "d.jsonl", row), strict=True).rows
    assert found == files.Row((Q,), found.chosen, found.rejected, 1, **{"between": (), **expected})
    assert {found.chosen, found.rejected} == {"4", "5"}


@pytest.mark.parametrize("row, reason", [
    ({**RANKED, "ranked": ["4"]}, "ranked: wrong type; expected a list of two or more strings"),
    ({**RANKED, "ranked": ["4", 5]}, "ranked: wrong type"),
    ({**RANKED, "ranked": ["4", " 4", "5"]}, "ranked: identical"),
    ({**RANKED, "ranked": ["4", " ", "5"]}, "ranked: empty response"),
])
def test_what_a_row_says_besides_must_make_sense(tmp_path, row, reason):
    with pytest.raises(UserError, match=re.escape(f"line 1: field {reason}")):
        files.read(write(tmp_path / "d.jsonl", row), strict=True)
