"""Which rows a run trains on and which it is tested on: the embedded world's, or those of a file."""
from dataclasses import dataclass, replace
from pathlib import Path

from nanopref.data.examples import encode
from nanopref.data.files import read, split
from nanopref.errors import UserError
from nanopref.run.config import DataConfig
from nanopref.run.distributed import from_main
from nanopref.world import labels, writers

CORPUS_DOCUMENTS = 80_000
TEST_FRACTION = 0.1  # of a file without a test split; the same prompt never stands on both sides


@dataclass
class Splits:
    """Rows by use. `tests` maps a split's name to its rows; `gold` says whether the gold reward can judge answers."""
    sft: list
    train: list
    tests: dict
    gold: bool
    notes: list
    best_accuracy: dict  # per test split: what no judge can beat on these labels; empty for real data


def load(config: DataConfig, ranking: int = 2) -> Splits:
    """The rows a run needs; on the embedded world rankings of `ranking` responses to train on, if more than 2."""
    return of_world(config, ranking) if config.data == "world" else of_file(config)


def of_world(config: DataConfig, ranking: int) -> Splits:
    """The embedded world is written to files first and read like any other data."""
    folder = Path(config.out) / "world" / f"data-seed{config.seed}"
    written, train = from_main(lambda: labels.make(folder, config.seed)), "train"
    if ranking > 2:
        train = from_main(lambda: labels.make_rankings(folder, ranking, config.seed))
    files = {name: read(folder / f"{name}.jsonl", config.strict) for name in {*written, train}}
    best = {name: labels.best_accuracy(written[name]) for name in ("test_id", "test_ood")}
    return Splits(files["sft"].rows[:config.rows], files[train].rows[:config.rows],
                  {name: files[name].rows for name in best}, True, [f"data: the embedded world, in {folder}"], best)


def of_file(config: DataConfig) -> Splits:
    """A file's rows, split by prompt where no test data is given. UserError where too few are left for either side."""
    files = {name: read(path, config.strict, config.axis) for name, path in config.files.items()}
    rows = {name: with_system(file.rows, config.system) for name, file in files.items()}
    if "test" in rows:  # a prompt that stands on both sides is for testing only
        tested = {row.key for row in rows["test"]}
        train, test = [row for row in rows["train"] if row.key not in tested], rows["test"]
    else:
        train, test = split(rows["train"], TEST_FRACTION, seed=0)
    if not train or not test:
        raise UserError(f"{config.data}: {len(rows['train'])} rows are too few to keep {TEST_FRACTION:.0%} for testing")
    notes = [f"data: {file.summary()}" for file in files.values()]
    notes.append(f"{len(train)} rows to train on, {len(test)} to test on")
    shared = len(rows["train"]) - len(train) if "test" in rows else 0
    notes += [f"{shared} training rows left out: their prompts are in the test data"] if shared else []
    sft = [row for row in train if row.chosen is not None]
    return Splits(sft[:config.rows], train[:config.rows], {"test": test}, False, notes, {})


def with_system(rows, text):
    """The rows with `text` as system message where they have none; None leaves that to the chat template."""
    if text is None:
        return rows
    message = {"role": "system", "content": text}
    return [row if row.prompt[0]["role"] == "system" else replace(row, prompt=(message, *row.prompt)) for row in rows]


def plain_texts(config: DataConfig) -> list[str]:
    """What the base model reads: the world's corpus, or the training side of a file as running text."""
    if config.data == "world":
        return writers.corpus(CORPUS_DOCUMENTS, seed=0)
    rows = load(config).train
    turns = lambda row, answer: "\n\n".join([message["content"] for message in row.prompt] + [answer])
    return [turns(row, answer) for row in rows for answer in (row.chosen, row.rejected) if answer]


def held_out_pairs(tokenizer, splits: Splits, max_length: int, groups=None) -> dict:
    """{split: Examples of the pairs that a judge is tested on}; what was cut or dropped is added to splits.notes.
    UserError for a split without pairs."""
    pairs = {}
    for name, rows in splits.tests.items():
        pairs[name], counts = encode(tokenizer, rows, ("w", "l"), max_length, groups=groups)
        splits.notes += [f"{name}: {n} {what}" for what, n in counts.items()]
        if not pairs[name]:
            dropped = "; ".join(f"{n} {what}" for what, n in counts.items())
            raise UserError(f"{name}: none of {len(rows)} test rows is a pair to test on ({dropped}): give other data, "
                            "as --test-data or --data")
    return pairs
