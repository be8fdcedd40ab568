"""The Hub is played by stand-ins for its functions; one test asks the real client, which is told to stay offline."""
import os
import subprocess
import sys
import types
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from nanopref.data import hub
from nanopref.errors import UserError

ROOT = Path(__file__).parents[1]


class Hub:
    """Answers with a path made of what was asked for, or raises `problem`; keeps the calls."""

    def __init__(self, monkeypatch, files=(), problem=None):
        self.files, self.problem, self.calls = list(files), problem, []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: types.SimpleNamespace(list_repo_files=self.list))

    def _called(self, *call):
        self.calls.append(call)
        if self.problem:
            raise self.problem

    def snapshot(self, repository, allow_patterns):
        self._called(repository, *allow_patterns)
        return f"/cache/{repository}"

    def list(self, repository, repo_type):
        self._called(repository, repo_type)
        return self.files

    def download(self, repository, file, repo_type):
        self._called(repository, file, repo_type)
        return f"/cache/{repository}/{file}"


def http_error(kind, message="404 Client Error. (Request ID: 1)\n\nEntry Not Found for url: u."):
    return kind(message, response=types.SimpleNamespace(headers={}, request=None))


def test_local_paths_never_reach_the_hub(tmp_path, monkeypatch):
    fake = Hub(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "d.jsonl").touch()
    assert hub.model_folder("org/name") == Path("org/name")
    assert hub.data_files("org/name/d.jsonl") == {"train": Path("org/name/d.jsonl")}
    with pytest.raises(UserError, match="a directory; give one file in it"):
        hub.data_files(tmp_path)
    with pytest.raises(UserError, match="d.jsonl: a file; give the model's folder"):
        hub.model_folder("org/name/d.jsonl")
    assert fake.calls == []


@pytest.mark.parametrize("name", ["missing", "./org/name", "/org/name", "../name", "a/b/c", "org/na me"])
def test_model_name_that_cannot_be_one(tmp_path, monkeypatch, name):
    fake = Hub(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such folder; expected a local folder, or a Hugging Face model as org/name"):
        hub.model_folder(name)
    assert fake.calls == []


@pytest.mark.parametrize("name", ["missing.jsonl", "missing", "runs/d.jsonl", "./a/b/d.jsonl", "/a/b/d.json",
                                  "here/a.parquet", "here/there/a.json"])
def test_data_name_that_cannot_be_one(tmp_path, monkeypatch, name):
    """here/there exists, so that here/there/a.json is a misspelt file and not one on the Hub."""
    fake = Hub(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "there").mkdir(parents=True)
    with pytest.raises(UserError, match="no such file; expected a local file, or a Hugging Face dataset as org/name"):
        hub.data_files(name)
    assert fake.calls == []


def test_model_is_downloaded_without_pickles(tmp_path, monkeypatch):
    fake = Hub(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert hub.model_folder("Org-1/name.2_b") == Path("/cache/Org-1/name.2_b")
    assert fake.calls == [("Org-1/name.2_b", "*.json", "*.safetensors", "*.jinja")]


@pytest.mark.parametrize("files, train, test", [
    (["data.jsonl", "README.md", "dataset_infos.json", "run.py"], "data.jsonl", None),
    (["test.jsonl"], "test.jsonl", None),
    (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
     "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    (["Train.jsonl.gz", "validation.jsonl.gz"], "Train.jsonl.gz", "validation.jsonl.gz"),
    (["train.json", "validation.json", "test.json"], "train.json", "test.json"),
    (["train.json.gz", "test_a.json", "test_b.json", "validation.json"], "train.json.gz", "validation.json"),
    (["train.json", "test_a.json", "test_b.json"], "train.json", None),
    (["train.json", "other.json"], "train.json", None),
    (["train_test.json", "other.json"], "train_test.json", None),  # one file is not both
    (["training/a.json", "b/train.json"], "b/train.json", None),  # the word, not its letters
])
def test_files_of_a_dataset(tmp_path, monkeypatch, files, train, test):
    fake = Hub(monkeypatch, files)
    monkeypatch.chdir(tmp_path)
    expected = {"train": train, "test": test} if test else {"train": train}
    assert hub.data_files("org/name") == {split: Path("/cache/org/name", file) for split, file in expected.items()}
    assert fake.calls == [("org/name", "dataset"), *(("org/name", file, "dataset") for file in expected.values())]


@pytest.mark.parametrize("files, message", [
    ([], "no data file in this dataset; expected .jsonl, .json, .jsonl.gz, .json.gz, .parquet"),
    (["train.csv", "pytorch.bin"], "no data file in this dataset"),
    (["b.jsonl", "a.jsonl"], "0 of its 2 data files have train in their path. "
                             "Name one, as in org/name/a.jsonl: a.jsonl, b.jsonl"),
    (["x/train.json", "y/train.json", "test.json"], "2 of its 3 data files have train in their path. "
     "Name one, as in org/name/test.json: test.json, x/train.json, y/train.json"),
    ([f"{i:02d}.json" for i in range(14)], "09.json, 10.json, 11.json and 2 more"),
])
def test_dataset_that_leaves_the_choice_open(tmp_path, monkeypatch, files, message):
    fake = Hub(monkeypatch, files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        hub.data_files("org/name")
    assert str(error.value).startswith("org/name: ") and message in str(error.value) and "\n" not in str(error.value)
    assert len(fake.calls) == 1  # nothing was downloaded


def test_file_of_a_dataset_by_its_name(tmp_path, monkeypatch):
    fake = Hub(monkeypatch)
    monkeypatch.chdir(tmp_path)
    name = "Anthropic/hh-rlhf/harmless-base/train.jsonl.gz"
    assert hub.data_files(name) == {"train": Path("/cache") / name}
    assert fake.calls == [("Anthropic/hh-rlhf", "harmless-base/train.jsonl.gz", "dataset")]


@pytest.mark.parametrize("problem, message", [
    (http_error(errors.GatedRepoError), "is gated: ask for access on its page, then log in with `hf auth login`"),
    (http_error(errors.RepositoryNotFoundError), "is neither here nor a public repository on the Hugging Face Hub"),
    (http_error(errors.RemoteEntryNotFoundError), "(404 Client Error. (Request ID: 1) Entry Not Found for url: u.)"),
    (errors.LocalEntryNotFoundError("no\nnetwork"), "cannot be fetched from the Hugging Face Hub (no network)"),
    (errors.OfflineModeIsEnabled("offline mode is enabled"), "offline mode is enabled"),
    (errors.HFValidationError("two dots"), "two dots"),
    (errors.HTTPError("Name or service not known"), "Name or service not known"),  # listing files without a network
])
def test_hub_that_does_not_deliver(tmp_path, monkeypatch, problem, message):
    monkeypatch.chdir(tmp_path)
    Hub(monkeypatch, problem=problem)
    for ask, name in ((hub.model_folder, "org/name"), (hub.data_files, "org/name"), (hub.data_files, "org/name/d.gz")):
        with pytest.raises(UserError) as error:
            ask(name)
        said = str(error.value)
        assert said.startswith(f"{name} ") and message in said
        assert said.endswith(". Without the Hub, give a local path") and "\n" not in said


def test_real_client_offline(tmp_path):
    """In its own process: the client reads HF_HUB_OFFLINE when it is imported, and nanopref.data.hub must not import it."""
    code = """
import sys
from nanopref.data import hub
from nanopref.errors import UserError
assert "huggingface_hub" not in sys.modules
for ask, name in ((hub.model_folder, "org/name"), (hub.data_files, "org/name"), (hub.data_files, "org/name/d.json")):
    try:
        ask(name)
    except UserError as error:
        print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert done.returncode == 0 and len(said) == 3, done.stderr
    for line in said:
        assert line.startswith("org/name") and "cannot be fetched from the Hugging Face Hub (" in line
        assert line.endswith(". Without the Hub, give a local path")
