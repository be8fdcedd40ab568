"""Model folders in Hugging Face's layout, and the training state that --resume reads. Nothing is ever unpickled.

A save writes `folder.new`, moves an existing `folder` to `folder.old`, then renames `folder.new` to `folder`. Killed at
any point, a complete model is left under `folder` or `folder.old`, and the loaders here look in both.
"""
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from nanopref.errors import UserError
from nanopref.model import Config, Transformer
from nanopref.reward import RewardModel, check_head
from nanopref.run.disk import write, writing
from nanopref.run.hf_config import config_from_json, config_to_json
from nanopref.run.weights import check_shapes, read_header, read_tensors, without_copies
from nanopref.text import CHAT_TEMPLATE, IM_END, IM_START, ChatTokenizer, train_tokenizer

WEIGHTS, STATE = "model.safetensors", "training_state.safetensors"
LONGEST = 2 ** 24  # bytes of a config.json, an index or a template: the longest in use have some 100,000
FILES = {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", WEIGHTS, STATE}


def sibling(folder, suffix):
    folder = Path(folder).absolute()
    return folder.parent / (folder.name + suffix)  # with_name refuses "/", whose name is empty


def drop_old(folder):
    """Deletes `folder.old`, after moving back what is no part of a checkpoint: logs and figures kept in the folder."""
    old = sibling(folder, ".old")
    if old.exists():
        for path in old.iterdir():
            if path.name not in FILES and not (folder / path.name).exists():
                os.replace(path, folder / path.name)
        shutil.rmtree(old)


def save_model(model, tokenizer, folder, training=None):
    """Writes or replaces `folder` in one step: config.json, model.safetensors, tokenizer.json, tokenizer_config.json.

    tokenizer  ChatTokenizer: its files and its chat template go along, so that the folder can be served as it is
    training   None, or (optimizer, step) to put save_state's file into the same step, so that a kill cannot
               leave the weights of one step beside the optimizer of another
    """
    folder, new, old = Path(folder), sibling(folder, ".new"), sibling(folder, ".old")
    with writing(folder):
        write_folder(model, tokenizer, new, training)
        if folder.exists():
            drop_old(folder)  # left by a save that was killed
            os.replace(folder, old)
        os.replace(new, folder)
        drop_old(folder)


def write_folder(model, tokenizer, folder, training) -> None:
    """save_model's files, in place of whatever is in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dtype = str(model.model["norm"].weight.dtype).removeprefix("torch.")
    head = {"groups": model.groups, "length_rule": model.length_rule} if isinstance(model, RewardModel) else {}
    described = {**config_to_json(model.config), **head, "torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})  # transformers 4 refuses a file without it
    tokenizer.save(folder)
    if training is not None:
        save_state(folder, *training)


def current(folder):
    """`folder`, or `folder.old` if a save was killed between its renames."""
    folder, old = Path(folder), sibling(folder, ".old")
    return old if not (folder / "config.json").exists() and old.exists() else folder


def has_model(folder):
    """Whether there is a model under `folder`, as `current` finds it."""
    return (current(folder) / "config.json").exists() and any(current(folder).glob("*.safetensors"))


def find(folder, name):
    """Path of a model folder's file, as `current` finds the folder; UserError if absent."""
    folder = current(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: check the path")
    if not (folder / name).is_file():
        remedy = "a model folder needs it; download it again"
        if name == WEIGHTS and any(folder.glob("*.bin*")):
            remedy = "a .bin is a pickle, which can run any code, and is not read; convert it to safetensors first"
        raise UserError(f"{folder}: no {name}: {remedy}")
    return folder / name


def digest(folder):
    """SHA-256 of all that decides what a model folder computes: weights, configuration, tokenizer, template."""
    files, sha = Path(find(folder, "config.json")).parent, hashlib.sha256()
    for path in sorted(files.iterdir()):
        if path.suffix not in (".json", ".jinja", ".safetensors") or path.name == STATE or not path.is_file():
            continue
        with path.open("rb") as file:
            for piece in iter(lambda: file.read(2 ** 24), b""):
                sha.update(piece)
    return sha.hexdigest()


def new_model(texts, vocab_size, architecture):
    """A Transformer with random weights and a tokenizer trained on `texts`; `architecture` holds the other fields of
    Config."""
    tokenizer = train_tokenizer(texts, vocab_size)
    return Transformer(Config(vocab_size=tokenizer.vocab_size, **tokenizer.ids, **architecture)), tokenizer


def load_model(folder, device="cpu", dtype=None, reward=False, groups=None):
    """(Transformer or RewardModel, ChatTokenizer); dtype None keeps the stored one. UserError for whatever cannot be
    read.

    reward  the model gets a scalar head instead of its language-model head: the folder's own if it is a reward model's,
            else a new, random one; UserError if it has several, one per group: which of them is to judge?
    groups  with reward: names of the annotators' groups, each of which gets a new head of its own
    """
    config, head = config_from_json_file(find(folder, "config.json"))
    tokenizer = load_tokenizer(folder)
    if tokenizer.largest_id >= config.vocab_size:
        raise UserError(f"{find(folder, 'tokenizer.json')}: token ids up to {tokenizer.largest_id}, but config.json "
                        f"has vocab_size {config.vocab_size}: they belong to different models, download both again")
    if reward and config.num_labels > 1 and not groups:
        raise UserError(f"{folder}: {config.num_labels} reward heads, of the groups {', '.join(head['groups'])}, where "
                        "one is needed: give a model with one head, or train a new head per group with train_rm.py "
                        "--heads")
    needs_head = reward and (groups or not config.num_labels)
    if needs_head:
        config, head["groups"] = replace(config, num_labels=0), groups
    config, paths = replace(config, **tokenizer.ids), _weight_files(folder)
    path = paths[0] if len(paths) == 1 else paths[0].with_name(WEIGHTS + ".index.json")  # what messages name
    check_shapes(path, read_header(paths), config)
    with torch.device("meta"):  # no memory and no random numbers spent on weights about to be replaced
        model = RewardModel(config, **head) if needs_head or config.num_labels else Transformer(config)
    tensors = without_copies(path, read_tensors(paths, device, dtype), config)
    if needs_head:
        tensors.pop("lm_head.weight", None)
        tensors["score.weight"] = torch.empty(model.score.weight.shape).normal_(std=0.02)
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        stored, wanted = (list(given[name].shape) if name in given else "absent" for given in (tensors, expected))
        if stored != wanted:
            raise UserError(f"{path}: {name}: {stored} in the file, {wanted} by config.json: they do not belong "
                            "together, download both again")
    model.load_state_dict(tensors, assign=True)
    if reward:
        model.score.to(model.model["norm"].weight)  # its device and dtype
    return model, tokenizer


def config_from_json_file(path):
    """(Config, {"groups", "length_rule"} of its reward heads) of a config.json, which every message names."""
    raw = _read_json(path)
    head = {"groups": raw.get("groups"), "length_rule": raw.get("length_rule")}
    try:
        config = config_from_json(raw)
        check_head(config.num_labels, **head)
        return config, head
    except (TypeError, KeyError, AttributeError) as error:  # a number where a list belongs, and the like
        raise UserError(f"{path}: a value of the wrong type ({error}), download it again") from None
    except UserError as error:
        raise UserError(f"{path}: {error}; use a Llama or Qwen2 model without such options") from None


def _read_text(path):
    if path.stat().st_size > LONGEST:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes are too many for such a file: download it again")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text, download it again: {error}") from None


def _read_json(path):
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON object, download it again: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object but a {type(content).__name__}: download it again")
    return content


def load_tokenizer(folder) -> ChatTokenizer:
    """The folder's tokenizer.json with its chat template: chat_template.jinja, else the one in tokenizer_config.json,
    else ChatML if the vocabulary has its two tokens. UserError if there is none to be had."""
    path = find(folder, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"{path}: not a tokenizer, download it again: {error}") from None
    described = _read_json(find(folder, "tokenizer_config.json"))
    described.pop("auto_map", None)  # names code that loaders may run; nothing here needs it
    template, own = described.get("chat_template"), path.with_name("chat_template.jinja")
    if own.is_file():
        template = _read_text(own)
    elif isinstance(template, list):  # several under names
        named = {str(each.get("name")): each.get("template") for each in template if isinstance(each, dict)}
        if "default" not in named:
            raise UserError(f"{path.parent}: several chat templates ({', '.join(named)}), none named default: name "
                            "one so")
        template = named["default"]
    if not template:
        if None in (tokenizer.token_to_id(IM_START), tokenizer.token_to_id(IM_END)):
            raise UserError(f"{path.parent}: no chat template (chat_template in tokenizer_config.json), and no "
                            f"{IM_START}, {IM_END} for the built-in ChatML: use an instruct model, or add a template")
        print(f"{path.parent}: no chat template; using ChatML, whose tokens the vocabulary has")
        template = CHAT_TEMPLATE
    try:
        return ChatTokenizer(tokenizer, {**described, "chat_template": template})
    except UserError as error:
        raise UserError(f"{path.parent}: {error}") from None
    except (TypeError, KeyError) as error:
        raise UserError(f"{path.parent}: tokenizer_config.json holds a value of the wrong type: {error}") from None


def _weight_files(folder) -> list[Path]:
    """model.safetensors, or the shards that its index lists."""
    index = find(folder, "config.json").with_name(WEIGHTS + ".index.json")
    if (index.parent / WEIGHTS).is_file() or not index.is_file():
        return [find(folder, WEIGHTS)]
    shards = _read_json(index).get("weight_map")
    if not shards or not isinstance(shards, dict) or not all(
            isinstance(name, str) and name == Path(name).name != "" for name in shards.values()):
        raise UserError(f"{index}: no weight_map from tensors to files of this folder: download it again")
    paths = [index.with_name(name) for name in sorted(set(shards.values()))]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: this shard of {len(paths)} is missing; {index.name} lists it: download it again")
    return paths


def save_state(folder, optimizer, step):
    """Writes the optimizer's moments and the number of steps done into an existing folder."""
    tensors = {f"{index}.{name}": tensor.contiguous() for index, state in optimizer.state_dict()["state"].items()
               for name, tensor in state.items()}
    write(Path(folder) / STATE, lambda partial: save_file(tensors, partial, metadata={"step": str(step)}))


def load_state(folder, optimizer):
    """Restores save_state's moments bit for bit into a fresh optimizer of the same model; returns the steps done."""
    path = find(folder, STATE)
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or incomplete, start again without --resume: {error}") from None
    new = optimizer.state_dict()
    shapes = dict(enumerate(p.shape for group in optimizer.param_groups for p in group["params"]))
    for key, tensor in tensors.items():
        index, name = key.split(".")
        if tensor.ndim and shapes.get(int(index)) != tensor.shape:
            raise UserError(f"{path}: belongs to another model: {key} has shape {tuple(tensor.shape)}")
        new["state"].setdefault(int(index), {})[name] = tensor.clone()
    optimizer.load_state_dict(new)
    return int(metadata["step"])
