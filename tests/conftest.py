"""A tokenizer of the embedded world, tiny models that go with it, and which tests may skip."""
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from nanopref.model import Config, Transformer
from nanopref.run.checkpoint import new_model, save_model
from nanopref.text import train_tokenizer
from nanopref.world import writers

torch.set_num_threads(1)  # models this small are faster so; processes that tests start choose for themselves

# A test that skips tests nothing. With CI set (.ci/run sets it) only these reasons are none of a failure: what they ask
# for is no part of the repository and cannot be installed.
MAY_SKIP = ("is not beside the repository", "is not part of this repository", "NANOPREF_SMOLLM2 names no",
            "measured on Linux only", "needs a GPU", "needs a C++ compiler")


def is_expected(reason: str, environment=os.environ) -> bool:
    """Whether a test may skip for this reason."""
    return not environment.get("CI") or any(part in reason for part in MAY_SKIP)


def _refuse_skip(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not is_expected(reason):
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid} skips, which tests/conftest.py does not expect in CI: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    _refuse_skip((yield).get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """A module that skips as a whole."""
    _refuse_skip((yield).get_result())


TINY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=128, tie_word_embeddings=True)
SUBJECTS = ("tea", "coffee", "rain", "snow", "bread", "salt", "iron", "gold", "wood", "sand", "wool", "silk")


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(writers.corpus(300, seed=0), 400)


@pytest.fixture(scope="session")
def tiny_model(tokenizer):
    """tiny_model(seed, dtype): every parameter random and large, so that no term of the forward pass is negligible."""
    def build(seed=0, dtype=torch.float64):
        model = Transformer(Config(vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=24,
                                   num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rope_theta=50.0,
                                   max_position_embeddings=128, tie_word_embeddings=True, **tokenizer.ids)).to(dtype)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.1, 0.3, generator=generator)
        return model
    return build


@pytest.fixture
def no_figure():
    """For tests of whole runs: to draw the figure takes longer than tiny models train. Here it is an empty file."""
    with pytest.MonkeyPatch.context() as patch:  # its own, which a test's monkeypatch.undo() leaves alone
        for name in ("plots.training_figure", "plots_rm.reward_figure"):
            patch.setattr(f"nanopref.judge.{name}", lambda *given: given[-1].touch())
        yield


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory):
    """One folder for the runs of the README and the notebooks, so that the SFT model is trained once; or not at all, if
    `runs/` has it: its name says that it is the same."""
    out = tmp_path_factory.mktemp("runs")
    for done in (Path(__file__).parent.parent / "runs" / "world").glob("sft-seed0-*"):
        if (done / "report.json").exists():
            shutil.copytree(done, out / "world" / done.name)
    return out


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A file of 60 pairs: a correct sentence is chosen over one that rambles."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"What is {s} {n}?", "chosen": f"It is {s} number {n}.",
             "rejected": f"I do not know {s} at all."} for s in SUBJECTS for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def start(pairs, tmp_path_factory):
    """An untrained tiny model folder to start from: what is tested here is the machinery, not the learning."""
    folder = tmp_path_factory.mktemp("model") / "start"
    torch.manual_seed(0)
    model, tokenizer = new_model([json.dumps(json.loads(line)) for line in pairs.open()], 320, TINY)
    save_model(model, tokenizer, folder)
    return folder
