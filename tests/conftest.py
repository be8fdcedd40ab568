"""A tokenizer of the embedded world and tiny models that go with it."""
import shutil
from pathlib import Path

import pytest
import torch

from nanopref import world
from nanopref.model import Config, Transformer
from nanopref.text import BOS, EOS, PAD, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(world.corpus(300, seed=0), 400)


@pytest.fixture(scope="session")
def tiny_model(tokenizer):
    """tiny_model(seed, dtype): every parameter random and large, so that no term of the forward pass is negligible."""
    def build(seed=0, dtype=torch.float64):
        ids = {f"{name}_token_id": tokenizer.token_to_id(token)
               for name, token in (("pad", PAD), ("bos", BOS), ("eos", EOS))}
        model = Transformer(Config(vocab_size=tokenizer.get_vocab_size(), hidden_size=16, intermediate_size=24,
                                   num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rope_theta=50.0,
                                   max_position_embeddings=128, tie_word_embeddings=True, **ids)).to(dtype)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.1, 0.3, generator=generator)
        return model
    return build


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory):
    """One folder for the runs of the README and the notebooks, so that the SFT model is trained once; or not at all, if
    `runs/` has it: its name says that it is the same."""
    out = tmp_path_factory.mktemp("runs")
    for done in (Path(__file__).parent.parent / "runs" / "world").glob("sft-seed0-*"):
        if (done / "report.json").exists():
            shutil.copytree(done, out / "world" / done.name)
    return out
