import gzip
import json
import re
from pathlib import Path

import pytest

from nanopref import data
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
ALIGN = {"question": "2+2?", "response_1": "4", "response_2": "5", "overall_response": 1}
UNPAIRED = {"prompt": "2+2?", "completion": "4", "label": True}


@pytest.mark.parametrize("row, name, prompt, chosen, rejected", [
    (PAIR, "pairs", [Q], "4", "5"),
    (HH, "hh-rlhf", [Q], "4", "5"),
    ({side: "\n\nHuman: Hi\n\nAssistant: Hello" + text for side, text in HH.items()}, "hh-rlhf",
     [user("Hi"), assistant("Hello"), Q], "4", "5"),
    (LISTS, "messages", [Q], "4", "5"),
    ({"chosen": [system("Add."), *LISTS["chosen"]], "rejected": [system("Add."), *LISTS["rejected"]]}, "messages",
     [system("Add."), Q], "4", "5"),
    ({"prompt": [Q], "chosen": [assistant("4")], "rejected": [assistant("5")]}, "messages", [Q], "4", "5"),
    # UltraFeedback-binarized: the prompt stands in `prompt` and again at the start of both sides
    ({"prompt": "2+2?", "prompt_id": "a", "score_chosen": 8.0, "score_rejected": 6.5, **LISTS},
     "messages", [Q], "4", "5"),
    (ALIGN, "align-anything", [Q], "4", "5"),
    ({**ALIGN, "overall_response": 2}, "align-anything", [Q], "5", "4"),
    ({"prompt": "2+2?", "completion": "4"}, "demonstrations", [Q], "4", None),
    (UNPAIRED, "unpaired", [Q], "4", None),
    ({**UNPAIRED, "label": False}, "unpaired", [Q], None, "4"),
    ({"prompt": [Q], "completion": [assistant("4")], "label": True}, "unpaired", [Q], "4", None),
])
def test_minimal_row_of_every_format(tmp_path, row, name, prompt, chosen, rejected):
    for strict in (False, True):
        read = data.read(write(tmp_path / "d.jsonl", row), strict=strict)
        assert read.format == name and read.dropped == {} and read.n_lines == 1
        assert read.rows == [data.Row(tuple(prompt), chosen, rejected, line=1)]


BLANK = " \n\t"
BAD = [  # a good row, then the bad one, its reason, its field and what the message says was expected
    (PAIR, "{not json", "not JSON", "(whole row)", "one JSON object"),
    (PAIR, '{"prompt": "\\ud800", "chosen": "4", "rejected": "5"}', "not JSON", "(whole row)", "valid Unicode"),
    (PAIR, "[" * 100_000, "not JSON", "(whole row)", "one JSON object"),
    (PAIR, '"text"', "wrong type", "(whole row)", "a JSON object, not str"),
    (PAIR, {"prompt": "2+2?", "chosen": "4"}, "missing field", "rejected", "fields prompt, chosen, rejected"),
    (PAIR, {**PAIR, "rejected": None}, "wrong type", "rejected", "a string or a list"),
    (PAIR, {**PAIR, "prompt": 4}, "wrong type", "prompt", "a string or a list"),
    (PAIR, {**PAIR, "prompt": BLANK}, "empty prompt", "prompt", "not blank"),
    (PAIR, {**PAIR, "prompt": ""}, "empty prompt", "prompt", "not blank"),
    (PAIR, {**PAIR, "chosen": BLANK}, "empty response", "chosen", "not blank"),
    (PAIR, {**PAIR, "rejected": ""}, "empty response", "rejected", "not blank"),
    (PAIR, {**PAIR, "rejected": " 4\n"}, "identical", "rejected", "other than chosen"),
    (LISTS, {**LISTS, "chosen": [Q, {"role": "assistant", "content": None}]}, "wrong type", "chosen", "content"),
    (LISTS, {**LISTS, "chosen": ["4"]}, "wrong type", "chosen", "role"),
    (LISTS, {**LISTS, "chosen": [user("3+3?"), assistant("6")]},
     "different prefixes", "rejected", "up to the last one"),
    (LISTS, {**LISTS, "chosen": []}, "empty response", "chosen", "at least one message"),
    (LISTS, {"chosen": [assistant("4")], "rejected": [assistant("5")]}, "empty prompt", "prompt", "one user message"),
    (LISTS, {"prompt": [], "chosen": "4", "rejected": "5"}, "empty prompt", "prompt", "one user message"),
    (LISTS, {"chosen": [Q, Q, assistant("4")], "rejected": [Q, Q, assistant("5")]},
     "roles do not alternate", "chosen", "found user, user, assistant"),
    (LISTS, {"chosen": [Q, user("4")], "rejected": [Q, user("5")]},
     "roles do not alternate", "chosen", "found user, user"),
    (LISTS, {"prompt": "another prompt", **LISTS}, "roles do not alternate", "chosen", "found user, user, assistant"),
    (HH, {"chosen": "", "rejected": ""}, "empty prompt", "prompt", "one user message"),
    (HH, {**HH, "chosen": 4}, "wrong type", "chosen", "a string"),
    (HH, {**HH, "rejected": "Hi. " + HH["rejected"]}, "roles do not alternate", "rejected", "starts with"),
    (HH, {**HH, "chosen": "\n\nHuman: 3+3?\n\nAssistant: 6"}, "different prefixes", "rejected", "up to the last one"),
    (HH, {side: HH["chosen"] + "\n\nAssistant: " + side for side in HH},
     "roles do not alternate", "chosen", "found user, assistant, assistant"),
    (HH, {side: HH["chosen"] + "\n\nHuman: ok" for side in HH},
     "roles do not alternate", "chosen", "ending with assistant; found user, assistant, user"),
    (HH, {**HH, "chosen": "\n\nHuman: 2+2?\n\nAssistant: "}, "empty response", "chosen", "not blank"),
    (ALIGN, {**ALIGN, "overall_response": 3}, "no preference", "overall_response", "1 or 2"),
    (ALIGN, {**ALIGN, "overall_response": 0}, "no preference", "overall_response", "1 or 2"),
    (ALIGN, {**ALIGN, "overall_response": True}, "no preference", "overall_response", "1 or 2"),
    (ALIGN, {**ALIGN, "question": ""}, "empty prompt", "question", "not blank"),
    (UNPAIRED, {**UNPAIRED, "label": "true"}, "wrong type", "label", "true or false"),
    (UNPAIRED, {**UNPAIRED, "completion": BLANK}, "empty response", "completion", "not blank"),
]


@pytest.mark.parametrize("good, bad, reason, field, expected", BAD)
def test_bad_row_is_dropped_and_counted_or_named(tmp_path, good, bad, reason, field, expected):
    path = write(tmp_path / "d.jsonl", good, "", bad, good)  # the blank line is no row, but it is a line
    read = data.read(path)
    assert [row.line for row in read.rows] == [1, 4]
    assert read.dropped == {reason: 1} and read.n_lines == 3
    assert read.summary() == f"{path}: format {read.format}, 2 of 3 rows kept; dropped: 1 {reason}"
    with pytest.raises(UserError) as error:
        data.read(path, strict=True)
    message = str(error.value)
    assert message.startswith(f"{path}, line 3: field {field}: {reason}; expected ")
    assert expected in message and "Correct the row, or leave out --strict" in message
    assert "\n" not in message


def test_prompt_is_not_guessed_from_shared_characters(tmp_path):
    row = {"prompt": "Q", "chosen": " The cat sat.", "rejected": "The cap"}
    assert data.read(write(tmp_path / "d.jsonl", row)).rows == [data.Row((user("Q"),), "The cat sat.", "The cap", 1)]
    row = {side: f"\n\nHuman: Q\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
    assert data.read(write(tmp_path / "d.jsonl", row)).rows == [data.Row((user("Q"),), "The cat sat.", "The cap", 1)]


def test_inner_text_is_kept_as_it_is(tmp_path):
    code = "def f():\n    return  1\n\n\n# \u2028 end"
    rows = data.read(write(tmp_path / "d.jsonl", {**PAIR, "chosen": f" {code}\n", "prompt": " 2+2?\n"})).rows
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
    expected = [data.Row((user(row["prompt"]),), "4", "5", line) for line, row in enumerate((PAIR, second), start=1)]
    for path in (jsonl, zipped, listed):
        assert data.read(path).rows == expected
    listed.write_text(json.dumps([PAIR, {**PAIR, "chosen": ""}]))
    with pytest.raises(UserError, match="item 2: field chosen"):
        data.read(listed, strict=True)


def test_unknown_format_names_file_fields_and_formats(tmp_path):
    without_rejected = {"prompt": "2+2?", "chosen": "4"}
    for row in ({"instruction": "2+2?", "output": "4"}, {"chosen": "4", "rejected": "5"}, without_rejected):
        path = write(tmp_path / "d.jsonl", row)
        with pytest.raises(UserError) as error:
            data.read(path)
        message = str(error.value)
        assert message.startswith(f"{path}: unknown format with fields {', '.join(sorted(row))}. ")
        assert all(name in message for name in data.FORMATS)


@pytest.mark.parametrize("name, content, expected", [
    ("empty.jsonl", b"", "holds no rows"),
    ("blank.jsonl", b"\n \n", "holds no rows"),
    ("list.json", b"[]", "holds no rows"),
    ("broken.json", b'[{"prompt": "2+2?"},', "starts like a JSON list"),
    ("not_gzip.jsonl.gz", b'{"prompt": 1}', "cannot be read: Not a gzipped file"),
    ("cut.jsonl.gz", gzip.compress(json.dumps(PAIR).encode() * 9)[:-12], "cannot be read"),
    ("unnamed_gzip.jsonl", gzip.compress(b"{}"), "not UTF-8 text; expected JSONL, a JSON list, or gzip named .gz"),
    ("binary.jsonl", b"\x80\x04\x95\xff\xfe", "not UTF-8 text"),
    ("zeros.jsonl", b"\x00" * 64, "1 not JSON"),
    ("all_bad.jsonl", json.dumps({**PAIR, "chosen": ""}).encode(), "no usable row in"),
])
def test_unusable_file(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        data.read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match="cannot be read.*No such file"):
        data.read(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        data.read(tmp_path)


def rows_with_prompts(prompts):
    return [data.Row((user(prompt),), f"answer {i}", None, i) for i, prompt in enumerate(prompts, start=1)]


def test_split_keeps_a_prompt_on_one_side():
    rows = rows_with_prompts([str(i % 40) for i in range(100)])  # prompts 0..19 three times, 20..39 twice
    train, test = data.split(rows, 0.2, seed=0)
    assert not {row.prompt[0]["content"] for row in train} & {row.prompt[0]["content"] for row in test}
    assert sorted(train + test, key=lambda row: row.line) == rows
    assert len(test) in (20, 21, 22)  # 20 wanted; the last prompt brings at most two rows more
    assert (train, test) == data.split(rows, 0.2, seed=0)
    assert test != data.split(rows, 0.2, seed=1)[1]


def test_split_is_exact_and_does_not_depend_on_order():
    rows = rows_with_prompts([str(i) for i in range(50)])
    train, test = data.split(rows, 0.1, seed=3)
    assert (len(train), len(test)) == (45, 5)
    assert data.split(rows[::-1], 0.1, seed=3)[1] == test[::-1]
    assert data.split(rows, 0, seed=3) == (rows, [])


def test_split_that_leaves_nothing_to_train_on():
    with pytest.raises(UserError, match="1 different prompts leaves none to train on"):
        data.split(rows_with_prompts(["same"] * 4), 0.5, seed=0)
    for fraction in (1, -0.1):
        with pytest.raises(UserError, match=f"test_fraction is {fraction}"):
            data.split(rows_with_prompts(["a", "b"]), fraction, seed=0)


@pytest.mark.skipif(not HH_FILE.exists(), reason="the HH-RLHF harmless-base test split is not beside the repository")
def test_real_hh_rlhf_file():
    """The counts were made by looking at the rows. In 5 rows the sides differ before the last answer (on one side two
    answers follow each other). In 4 more both sides share a prompt with two answers in a row, and 4 have an empty
    chosen answer."""
    read = data.read(HH_FILE)
    assert (read.format, read.n_lines, len(read.rows)) == ("hh-rlhf", 2312, 2299)
    assert read.dropped == {"different prefixes": 5, "empty response": 4, "roles do not alternate": 4}
    lines = {row.line for row in read.rows}
    assert set(range(1, 2313)) - lines == {1255, 1689, 1951, 1953, 2037, 87, 517, 926, 1104, 668, 764, 1320, 1850}
    assert read.rows[0].prompt[0]["role"] == "user" and read.rows[0].prompt[-1]["role"] == "user"
    with pytest.raises(UserError, match="line 87: field chosen: empty response"):
        data.read(HH_FILE, strict=True)
    train, test = data.split(read.rows, 0.1, seed=0)
    assert len(train) + len(test) == 2299 and 230 <= len(test) <= 232
