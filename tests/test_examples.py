"""From rows to token ids: what is kept, what is cut, and KTO's mismatched responses."""
import json
from collections import Counter
from types import SimpleNamespace

import pytest

from nanopref.batch import CHOSEN, MISMATCHED, REJECTED
from nanopref.data.examples import encode, text_examples
from nanopref.data.files import Row
from nanopref.errors import UserError
from nanopref.run.dataset import load
from nanopref.text import decode, encode_prompt, encode_response


def row(question, chosen, rejected=None, line=1):
    return Row(({"role": "user", "content": question},), chosen, rejected, line)


def texts(tokenizer, example):
    return [decode(tokenizer, response) for response in example.responses]


# Every response names its prompt, so that it can be told whose it is. Prompts occur once to four times.
ROWS = [row(f"Prompt {p}?", f"Good {p} {i}.", f"Bad {p} {i}.") for p in range(8) for i in range(1 + p % 4)]


def test_a_loss_gets_the_responses_it_reads(tokenizer):
    for inputs, roles in ((("w",), [CHOSEN]), (("w", "l"), [CHOSEN, REJECTED]),
                          (("w", "l", "kl"), [CHOSEN, REJECTED, MISMATCHED])):
        examples, counts = encode(tokenizer, ROWS, inputs, 128)
        assert not counts and len(examples) == len(ROWS)
        for example, r in zip(examples, ROWS):
            assert example.roles == roles and example.prompt == encode_prompt(tokenizer, r.prompt)
            assert texts(tokenizer, example)[:2] == [r.chosen, r.rejected][:len(roles)]


def test_mismatched_responses_belong_to_another_prompt(tokenizer):
    """Of the 20 rows, 4 share a prompt with 3 others: the next row in any order is often the same prompt's."""
    by_seed = []
    for seed in (0, 0, 1):
        examples, _ = encode(tokenizer, ROWS, ("w", "l", "kl"), 128, seed)
        by_seed.append([texts(tokenizer, example)[2] for example in examples])
        for r, mismatched in zip(ROWS, by_seed[-1]):
            own, other = r.chosen.split()[1], mismatched.split()[1]
            assert own != other
    assert by_seed[0] == by_seed[1] != by_seed[2]
    kinds = Counter(text.split()[0] for text in by_seed[0])
    assert set(kinds) == {"Good", "Bad"}  # good and bad ones both: z0 must not lean to one side
    with pytest.raises(UserError, match="two different prompts"):
        encode(tokenizer, [row("One?", "a", "b"), row("One?", "c", "d")], ("w", "l", "kl"), 128)


def test_unpaired_rows(tokenizer):
    """KTO takes either response; a loss on pairs cannot, and SFT takes the good ones: what is left out is counted."""
    rows = [row("A?", "yes"), row("B?", None, "no"), row("C?", "good", "bad")]
    examples, counts = encode(tokenizer, rows, ("w", "l", "kl"), 128)
    assert [e.roles for e in examples] == [[CHOSEN, MISMATCHED], [REJECTED, MISMATCHED], [CHOSEN, REJECTED, MISMATCHED]]
    assert not counts
    for inputs, kept in ((("w", "l"), [["good", "bad"]]), (("w",), [["yes"], ["good"]])):
        examples, counts = encode(tokenizer, rows, inputs, 128)
        assert [texts(tokenizer, e) for e in examples] == kept
        assert counts == {"rows without a response that this loss needs, left out": 3 - len(kept)}


@pytest.mark.parametrize("inputs", [("w", "l"), ("w", "l", "kl")])
def test_pairs_that_become_equal_by_cutting_are_dropped_and_counted(tokenizer, inputs):
    """In 40 tokens, two answers of over 60 tokens that differ at the end are the same; those that differ at the start
    are not. Their prompts give way first, down to the generation header."""
    long = "word " * 60
    rows = [row("A?", long + "yes", long + "no"), row("B?", "yes " + long, "no " + long), row("C?", "yes", "no")]
    examples, counts = encode(tokenizer, rows, inputs, 40)
    assert [texts(tokenizer, e)[0][:3] for e in examples] == ["yes", "yes"]
    assert [e.roles[:2] for e in examples] == [[CHOSEN, REJECTED]] * 2
    assert counts["pairs equal after cutting, dropped"] == 1
    assert counts["responses cut on the right"] >= 4 and counts["prompts cut on the left"] >= 2
    assert all(len(e.prompt) + len(response) <= 40 for e in examples for response in e.responses)


def test_a_long_prompt_is_cut_and_counted(tokenizer):
    examples, counts = encode(tokenizer, [row("word " * 60 + "end?", "yes", "no")], ("w", "l"), 40)
    assert counts == {"prompts cut on the left": 1}
    assert len(examples[0].prompt) + max(map(len, examples[0].responses)) == 40
    assert decode(tokenizer, examples[0].prompt).rstrip().endswith("end?\nassistant")


def test_texts_are_cut_into_pieces_that_lose_nothing(tokenizer):
    """A text of 60 words and a short one, with one place of 20 for BOS."""
    long, short = "word " * 60, "Short."
    examples = text_examples(tokenizer, [long, short], 20)
    assert all(e.prompt == encode_prompt(tokenizer, []) and e.n_tokens <= 20 for e in examples)
    whole = encode_response(tokenizer, long) + encode_response(tokenizer, short)
    assert sum((e.responses[0] for e in examples), []) == whole


def test_a_file_is_split_by_prompt(tmp_path):
    """10 prompts of 4 rows: a tenth is one prompt, whole. Rows of one prompt only cannot be split."""
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"Prompt {p}?", "chosen": f"good {i}", "rejected": f"bad {i}"}
             for p in range(10) for i in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = SimpleNamespace(data=path, files={"train": path}, strict=True, rows=30, axis=None, system=None)
    splits = load(config)
    assert len(splits.tests["test"]) == 4 and len(splits.sft) == len(splits.train) == 30 and not splits.gold
    assert not [r for r in splits.sft if r.prompt == splits.tests["test"][0].prompt]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:4]))
    with pytest.raises(UserError):
        load(config)


def test_given_test_data_keeps_its_prompts_to_itself(tmp_path):
    """Prompts 3 and 4 stand in both files: they are tested on, and not trained on."""
    files = {"train": tmp_path / "train.jsonl", "test": tmp_path / "test.jsonl"}
    for name, prompts in (("train", range(5)), ("test", range(3, 7))):
        rows = [{"prompt": f"Prompt {p}?", "chosen": "good", "rejected": "bad"} for p in prompts]
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load(SimpleNamespace(data="x", files=files, strict=True, rows=None, axis=None, system="Be brief."))
    asked = lambda rows: [row.prompt[-1]["content"] for row in rows]
    assert asked(splits.train) == [f"Prompt {p}?" for p in range(3)]
    assert asked(splits.tests["test"]) == [f"Prompt {p}?" for p in range(3, 7)]
    system = {"role": "system", "content": "Be brief."}
    assert all(row.prompt[0] == system for row in splits.train + splits.tests["test"])
    assert any("2 training rows left out" in note for note in splits.notes)
