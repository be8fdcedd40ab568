"""Broken input, made with a seed: rows, files and commands that no sane program writes and that a user still brings."""
import copy
import gzip
import io
import json
import os
import re

from test_data import (
    ALIGN, ALPACA, ALPACA_LONG, ALPACA_UNPAIRED, HH, LISTS, LONG_LISTS, ORCA, PAIR, PKU, RANKED, SHAREGPT,
    SHAREGPT_LONG, SHAREGPT_UNPAIRED, SWIFT, SWIFT_UNPAIRED, ULTRA, UNPAIRED, without)

from nanopref.data.formats import FORMATS, detect

ROWS = [
    ALIGN, PKU, RANKED, ULTRA, SHAREGPT, ALPACA, ORCA, HH, LISTS, PAIR, SWIFT, UNPAIRED, ALPACA_UNPAIRED,
    SHAREGPT_UNPAIRED, SWIFT_UNPAIRED, without(UNPAIRED, "label"), without(ALPACA_UNPAIRED, "kto_tag"),
    without(SHAREGPT_UNPAIRED, "kto_tag"), without(SWIFT_UNPAIRED, "label"),
    {"messages": LONG_LISTS["chosen"], "rejected_messages": LONG_LISTS["rejected"]},
    LONG_LISTS, {**ALPACA, **ALPACA_LONG}, {**SHAREGPT, "system": "Add.", "conversations": SHAREGPT_LONG},
    {**PAIR, "score_chosen": 2, "score_rejected": 1.5, "group": "curious"}, {**ALIGN, "gold_1": 1.0, "gold_2": 3}]
assert {detect(row) for row in ROWS} == set(FORMATS), "every format has a row to break"

NAMES = ["", "\x1b[31mred\x1b[0m", "a\nb", "x" * 3000, "\u202eback", "\x00", "\x7f", "\ud800", "prompt ", "Prompt",
         "role", "content", "system", "history", "group", "score_chosen", "label", "chosen", "rejected", "messages"]
TEXTS = [*NAMES, "\n\nHuman: a\n\nAssistant: b", "<|im_end|>", " ", "\udfff\ud800", "y" * 9000, "\x85\u2028\ufeff"]
PIECES = [b"\x00", b"\x1b[2J", b"\r", b"\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\\ud800", b"\\u0000", b"9" * 500,
          *(bytes([c]) for c in b'{}[]",:\\')]


class Raw(str):
    """A piece of JSON text, for what json.dumps would not write."""


def nested(depth, is_list):
    """A list in a list, or an object in an object, and so on."""
    return Raw("[" * depth + "]" * depth if is_list else '{"a":' * depth + "1" + "}" * depth)


def anything(rng):
    """A value that a field may turn out to have."""
    message = lambda: {"role": rng.choice(["user", "assistant", "system", *NAMES]), "content": rng.choice(TEXTS)}
    return rng.choice([
        lambda: rng.choice(TEXTS),
        lambda: rng.choice([None, True, False, [], {}, 0, 1, 2, -1, 0.5, [[]], [None]]),
        lambda: Raw(rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "-0", "1E400", "1e-999"])),
        lambda: Raw(rng.choice("123456789-") + "9" * rng.choice([20, 308, 400, 401, 4299, 4300, 5000])),
        lambda: nested(rng.choice([50, 300, 450, 900, 960, 985, 990, 995, 5000]), rng.random() < 0.5),
        lambda: [rng.choice(TEXTS) for _ in range(3)],
        message, lambda: [message() for _ in range(rng.choice([1, 2, 3, 40]))],
        lambda: {rng.choice(NAMES): rng.choice(TEXTS) for _ in range(3)}])()


def places(value):
    """Every (container, key) in a row."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def dumps(value):
    """json.dumps, but Raw text stays as it is."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {dumps(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return str(value) if isinstance(value, Raw) else json.dumps(value)


def changed_row(row, rng):
    """JSON text of the row with one to three fields renamed, replaced, taken out, added or written twice."""
    row, twice = copy.deepcopy(row), ""
    for _ in range(rng.choice([1, 1, 2, 3])):
        every = list(places(row)) or [(row, None)]
        numbers = [place for place in every if place[1] is not None and type(place[0][place[1]]) in (int, float)]
        container, key = rng.choice(numbers if numbers and rng.random() < 0.3 else every)
        what = rng.choice(["value", "value", "value", "rename", "delete", "add", "twice"])
        if what == "twice" and row:
            twice = f"{json.dumps(rng.choice(list(row)))}: {dumps(anything(rng))}, "
        elif what == "add" or key is None:
            row[rng.choice(NAMES)] = anything(rng)
        elif what == "value":
            container[key] = anything(rng)
        elif what == "delete":
            del container[key]
        elif isinstance(container, dict):
            container[rng.choice(NAMES)] = container.pop(key)
    return ("{" + twice + dumps(row)[1:]).encode("utf-8")


def changed_bytes(data, rng):
    """The bytes with one to four places changed."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 1, 5, 40]))
        data = rng.choice([
            lambda: data[:at] + bytes([rng.randrange(256)]) + data[at + 1:],
            lambda: data[:at] + rng.choice(PIECES) + data[at:],
            lambda: data[:at], lambda: data[at:], lambda: data[:at] + data[end:],
            lambda: data[:end] + data[at:end] * rng.choice([1, 3, 1000]) + data[end:],
            lambda: data.replace(b'"', b"'"), lambda: data.decode("utf-8", "replace").encode("utf-16")])()
    return data


def broken_file(rng, n_good=8):
    """(suffix, bytes): good rows of one format and among them, or first, a broken line, as JSONL or a JSON list,
    sometimes gzipped and sometimes damaged as a whole."""
    row = rng.choice(ROWS)
    lines = [json.dumps(row).replace("2+2", f"{i}+2").encode() for i in range(n_good)]
    broken = changed_row(row, rng) if rng.random() < 0.6 else changed_bytes(lines[0], rng)
    lines.insert(rng.choice([0, rng.randrange(n_good)]), broken)
    if rng.random() < 0.2:
        suffix, data = ".json", b"[" + b",\n".join(lines) + b"]"
    else:
        suffix, data = ".jsonl", rng.choice([b"\n", b"\n", b"\r\n", b"\n\n"]).join(lines)
    if rng.random() < 0.1:
        suffix, data = suffix + ".gz", gzip.compress(data, 1)
    return suffix, changed_bytes(data, rng) if rng.random() < 0.1 else data


def broken_parquet(rng):
    """The same of a Parquet file of good rows, damaged in its bytes; its second half mostly describes the first."""
    import pyarrow
    from pyarrow import parquet
    row, file = rng.choice(ROWS), io.BytesIO()
    rows = [json.loads(json.dumps(row).replace("2+2", f"{i}+2")) for i in range(40)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file,
                        compression=rng.choice(["snappy", "gzip", "zstd", "none"]))
    data = bytearray(file.getvalue())
    start = rng.choice([0, len(data) // 2])
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        data[rng.randrange(start, len(data))] = rng.randrange(256)
    return ".parquet", bytes(data) if rng.random() < 0.8 else bytes(data[:rng.randrange(len(data))])


NUMBERS = ["nan", "inf", "-inf", "-1", "0", "1", "2", "8", "1e-400", "1e400", "1e308", "9" * 400, "9" * 5000, "", " 3 ",
           "x", "\x1b[2J", "\udcff", "1_0", "٣", "0x10", "3.5", "1e-3", "0.1",
           *map(str, (2**31, 2**63, 2**64, -2**63, 10**18))]
WORDS = ["", " ", "Be brief.", "a\nb", "\x1b[31m", "\udcff", "\u202e", "x" * 9000, "名", "<|im_end|>", "-", "better"]
PATHS = ["", ".", "/", "/dev/null", "/dev/zero", "no\nfile.jsonl", "\x1b[2J.jsonl", "\udcff.jsonl", "x" * 300,
         "x" * 5000, "/proc/self/mem", "/etc/passwd/x", "a/b", "a/b/c.jsonl", "a b/c", "~", "{}", "%s", "none.jsonl"]
OPTIONS = {
    **dict.fromkeys(("--lr", "--epochs", "--batch-size", "--accumulate", "--max-length", "--rows", "--seed"), NUMBERS),
    "--system": WORDS, "--axis": WORDS, "--precision": [*WORDS, "bf16", "tf32"], "--fresh": WORDS, "--strict": WORDS,
    "--device": [*WORDS, *NUMBERS, "cuda", "cuda:99", "meta", "cpu:1"], "--model": PATHS, "--data": PATHS,
    "--test-data": PATHS, "--out": PATHS, "--no-such": WORDS}
OF_PO = {**OPTIONS, **dict.fromkeys(("--beta", "--label-smoothing", "--prompts", "--gamma"), NUMBERS),
         "--loss": [*WORDS, "dpo", "kto", "simpo"]}
OF_RM = {**OPTIONS,
         **dict.fromkeys(("--center", "--margin", "--ranking", "--length-penalty", "--length-alpha"), NUMBERS)}


def command(rng, folder, data, model):
    """The words of a command that would run, with one to three options changed; what it writes is in `folder`."""
    script, values = rng.choice([("train_po.py", OF_PO), ("train_rm.py", OF_RM)])
    options = {"--data": data, "--model": model, "--batch-size": "8", "--epochs": "1", "--max-length": "64",
               "--device": "cpu", "--out": "", **({"--loss": "dpo"} if script == "train_po.py" else {})}
    for option in rng.sample(list(values), rng.choice([1, 1, 1, 2, 3])):
        options[option] = rng.choice(values[option])
    options["--out"] = os.path.join(folder, options["--out"].lstrip("/"))
    return [script, *[f"{option}={value}" for option, value in options.items()]]


TEMPLATES = ["{{ 'a' * 4000000000 }}", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
             "{{ 10 ** 10 ** 9 }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ messages }}", "{{", "x" * 10 ** 7,
             "{{ raise_exception('\x1b[2J') }}", "{% include 'x' %}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}", ""]


def broken_model(rng, good, folder):
    """A copy of the model folder `good` with one to three things wrong in its files."""
    folder.mkdir()
    files = {path.name: path.read_bytes() for path in good.iterdir()}
    for _ in range(rng.choice([1, 1, 2, 3])):
        name = rng.choice(["config.json", "config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors",
                           "model.safetensors", "chat_template.jinja", "model.safetensors.index.json"])
        content = files.get(name, b"{}")
        if name == "chat_template.jinja":
            files[name] = rng.choice([*TEMPLATES, *TEXTS]).encode("utf-8", "surrogatepass")
        elif name == "model.safetensors" and rng.random() < 0.6:  # its header: dtypes, shapes, names
            size = int.from_bytes(content[:8], "little")
            header = changed_bytes(content[8:8 + size], rng) if rng.random() < 0.5 else rng.choice([
                lambda: content[8:8 + size].replace(b'"F32"', rng.choice([b'"I32"', b'"BOOL"', b'"F8_E4M3"', b'"C64"'])),
                lambda: re.sub(rb"\[(\d+)", lambda m: b"[" + rng.choice([b"1099511627776", b"0", b"-1", b"9" * 400]),
                               content[8:8 + size], count=1)])()
            files[name] = (len(header) if rng.random() < 0.8 else rng.randrange(2 ** 40)).to_bytes(8, "little") + (
                header + content[8 + size:])
        elif name == "model.safetensors" and rng.random() < 0.5:  # its numbers
            at = rng.randrange(len(content) // 2, len(content) - 4) & ~3
            files[name] = content[:at] + rng.choice([b"\xff", b"\x00"]) * 4 + content[at + 4:]
        elif name.endswith("config.json") and content == (good / name).read_bytes() and rng.random() < 0.8:
            files[name] = changed_row(json.loads(content), rng)
        else:
            files[name] = changed_bytes(content, rng)
    for name in rng.sample(list(files), rng.choice([0, 0, 0, 1])):
        del files[name]
    for name, content in files.items():
        (folder / name).write_bytes(content)
