"""Models and data by name: a local path stays what it is, `org/name` comes from the Hugging Face Hub.

huggingface_hub is imported where it is used: importing it slows every start, and a local path does not need it. What it
has downloaded stays in its cache, so that a model, or a data file named in full, is found again offline.
"""
import re
from pathlib import Path

from nanopref.data.files import check_file
from nanopref.errors import UserError, shown

DATA_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
REPOSITORY = r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
MAX_LISTED = 12  # files named in an error


def model_folder(name):
    """The local folder `name`, or where the weights, tokenizer and configuration of the Hub model org/name now lie."""
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists():
        raise UserError(f"{name}: a file; give the model's folder")
    if not re.fullmatch(REPOSITORY, str(name)):
        raise UserError(f"{name}: no such folder; expected a local folder, or a Hugging Face model as org/name")
    from huggingface_hub import snapshot_download

    # No *.bin or *.pt: a pickle runs code when it is loaded.
    return Path(_fetch(name, snapshot_download, name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))


def data_files(name):
    """{"train": path, and "test" if there is one}. `name`: a local file, org/name, or org/name/path/in/repo.jsonl.

    In the dataset repository org/name the one file with the word "train" in its path is the training data, and the one
    with "test", or else with "validation", the test data; a single file is the training data. Raises UserError that
    lists the files where this does not settle which to take.
    """
    path = Path(name)
    if not str(name).isprintable():  # it is part of the run's own name
        raise UserError(f"{shown(str(name))}: a name with characters that cannot be printed; give the file another one")
    check_file(path)
    if path.exists():
        return {"train": path}
    named_file = re.fullmatch(f"{REPOSITORY}/(.+)", str(name))
    # A missing file in a folder that exists is a slip of the pen and not something to look for on the Hub.
    is_slip = str(name).endswith(DATA_SUFFIXES) and (path.parent.is_dir() or not named_file)
    if is_slip or not (named_file or re.fullmatch(REPOSITORY, str(name))):
        raise UserError(f"{name}: no such file; expected a local file, or a Hugging Face dataset as org/name or "
                        "org/name/path/in/repo.jsonl")
    from huggingface_hub import HfApi, hf_hub_download
    if named_file:
        repository, chosen = named_file[1], {"train": named_file[2]}
    else:
        repository = str(name)
        chosen = _choose(name, _fetch(name, HfApi().list_repo_files, name, repo_type="dataset"))
    return {split: Path(_fetch(name, hf_hub_download, repository, file, repo_type="dataset"))
            for split, file in chosen.items()}


def _choose(name, files):
    """{"train": file and, where there is one, "test": file} of the files in the dataset repository `name`."""
    files = sorted(file for file in files
                   if file.endswith(DATA_SUFFIXES) and not Path(file).name.startswith("dataset_info"))
    if len(files) == 1:
        return {"train": files[0]}
    words = {file: set(re.findall("[a-z]+", file.lower())) for file in files}
    having = {word: [file for file in files if word in words[file]] for word in ("train", "test", "validation")}
    if not files:
        raise UserError(f"{name}: no data file in this dataset; expected {', '.join(DATA_SUFFIXES)}")
    if len(having["train"]) != 1:
        more = f" and {len(files) - MAX_LISTED} more" if len(files) > MAX_LISTED else ""
        raise UserError(f"{name}: {len(having['train'])} of its {len(files)} data files have train in their path. "
                        f"Name one, as in {name}/{files[0]}: {', '.join(files[:MAX_LISTED])}{more}")
    chosen = {"train": having["train"][0]}
    for word in ("validation", "test"):  # the later one wins
        if len(having[word]) == 1 and having[word] != having["train"]:
            chosen["test"] = having[word][0]
    return chosen


def _fetch(name, call, *args, **kwargs):
    """call(*args, **kwargs), with what goes wrong on the way to the Hub said in one line."""
    from huggingface_hub import errors
    try:
        return call(*args, **kwargs)
    except errors.GatedRepoError:  # before the next, which it is a kind of
        problem = "is gated: ask for access on its page, then log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        problem = "is neither here nor a public repository on the Hugging Face Hub: check the name, or log in"
    except Exception as error:  # an OSError, a ValueError or one of its HTTP library's own, from release to release
        problem = f"cannot be fetched from the Hugging Face Hub ({' '.join(str(error).split())})"
    raise UserError(f"{name} {problem}. Without the Hub, give a local path")
