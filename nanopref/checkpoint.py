"""Model folders in Hugging Face's layout, and the training state that --resume reads. Nothing is ever unpickled.

A save writes `folder.new`, moves an existing `folder` to `folder.old`, then renames `folder.new` to `folder`. Killed at
any point, a complete model is left under `folder` or `folder.old`, and the loaders here look in both.
"""
import json
import os
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from nanopref.errors import UserError
from nanopref.model import Config, Transformer
from nanopref.text import BOS, CHAT_TEMPLATE, EOS, PAD, train_tokenizer

WEIGHTS, STATE = "model.safetensors", "training_state.safetensors"
FILES = {"config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, STATE}
# What a config.json can ask for and model.py does not have. Absent means the value here.
FIXED = {"hidden_act": "silu", "mlp_bias": False, "rope_scaling": None, "use_sliding_window": False,
         "attention_dropout": 0, "partial_rotary_factor": 1}


def config_to_json(config):
    """The content of config.json, as a dict."""
    family, model_type = ("Qwen2", "qwen2") if config.attention_bias else ("Llama", "llama")
    kind = "ForSequenceClassification" if config.num_labels else "ForCausalLM"
    return {"architectures": [family + kind], "model_type": model_type, "hidden_act": "silu", **asdict(config)}


def config_from_json(raw):
    """Config from the content of a config.json; UserError names the first thing that model.py does not implement."""
    model_type = raw.get("model_type")
    if model_type not in ("llama", "qwen2"):
        raise UserError(f"config: model_type must be llama or qwen2, not {model_type!r}")
    has_bias = model_type == "qwen2"  # Llama's attention_bias is another: it covers o_proj too
    rope = raw.get("rope_parameters") or {}  # where transformers 5 keeps rope_theta
    for name, value in {**FIXED, "attention_bias": has_bias}.items():
        if raw.get(name, value) != value:
            raise UserError(f"config: {name} must be {value!r} for {model_type}, not {raw[name]!r}")
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"config: rope_type must be 'default', not {rope['rope_type']!r}")
    values = {f.name: raw[f.name] for f in fields(Config) if f.name in raw} | {"attention_bias": has_bias}
    if "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
    if "ForSequenceClassification" not in str(raw.get("architectures")):
        values["num_labels"] = 0
    elif raw.get("id2label"):
        values["num_labels"] = len(raw["id2label"])
    try:
        config = Config(**values)
    except TypeError as error:  # its text names the required fields that are absent
        raise UserError(f"config: {error}") from None
    if raw.get("head_dim") not in (None, config.head_dim):
        raise UserError(f"config: head_dim must be hidden_size / num_attention_heads = {config.head_dim}, "
                        f"not {raw['head_dim']!r}")
    return config


def sibling(folder, suffix):
    folder = Path(folder).absolute()
    return folder.with_name(folder.name + suffix)


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

    tokenizer  tokenizers.Tokenizer
    training   None, or (optimizer, step, extra) to put save_state's file into the same step, so that a kill cannot
               leave the weights of one step beside the optimizer of another
    """
    folder, new, old = Path(folder), sibling(folder, ".new"), sibling(folder, ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    (new / "config.json").write_text(json.dumps(config_to_json(model.config), indent=2) + "\n")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})  # transformers 4 refuses a file without it
    tokenizer.save(str(new / "tokenizer.json"))
    names = {f"{name}_token": getattr(model.config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE,
                 "model_max_length": model.config.max_position_embeddings,
                 **{name: tokenizer.id_to_token(i) for name, i in names.items() if i is not None}}
    (new / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")
    if training is not None:
        save_state(new, *training)
    if folder.exists():
        drop_old(folder)  # left by a save that was killed
        os.replace(folder, old)
    os.replace(new, folder)
    drop_old(folder)


def find(folder, name):
    """Path of a checkpoint's file, in `folder.old` if a save was killed between its renames; UserError if absent."""
    folder, old = Path(folder), sibling(folder, ".old")
    if not (folder / "config.json").exists() and old.exists():
        folder = old
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not (folder / name).is_file():
        pickled = " (a .bin is a pickle, which can run any code: convert it first)" if any(folder.glob("*.bin")) else ""
        raise UserError(f"{folder}: no {name}{pickled}")
    return folder / name


def new_model(texts, vocab_size, architecture):
    """A tokenizer trained on `texts` and a Transformer with random weights to go with it; `architecture` holds the other
    fields of Config."""
    tokenizer = train_tokenizer(texts, vocab_size)
    ids = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in (("bos", BOS), ("eos", EOS), ("pad", PAD))}
    return Transformer(Config(vocab_size=tokenizer.get_vocab_size(), **ids, **architecture)), tokenizer


def load_model(folder, device="cpu", dtype=None):
    """(Transformer, tokenizers.Tokenizer); dtype None keeps the stored one. UserError for whatever cannot be read."""
    path = find(folder, "config.json")
    try:
        model_config = config_from_json(json.loads(path.read_text()))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a JSON object: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    with torch.device("meta"):  # no memory and no random numbers spent on weights about to be replaced
        model = Transformer(model_config)
    path, expected = find(folder, WEIGHTS), model.state_dict()
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name).to(device=device, dtype=dtype, copy=True) for name in file.keys()}
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or incomplete: {error}") from None
    for name in sorted(expected.keys() | found.keys()):
        stored, wanted = (list(tensors[name].shape) if name in tensors else "absent" for tensors in (found, expected))
        if stored != wanted:
            raise UserError(f"{path}: {name}: {stored} in the file, {wanted} by config.json")
    model.load_state_dict(found, assign=True)
    path = find(folder, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"{path}: not a tokenizer: {error}") from None
    if tokenizer.get_vocab_size() > model_config.vocab_size:
        raise UserError(f"{path}: {tokenizer.get_vocab_size()} tokens, but the model has {model_config.vocab_size}")
    return model, tokenizer


def save_state(folder, optimizer, step, extra):
    """Writes the optimizer's moments, the step and `extra` (a dict that JSON can hold) into an existing folder."""
    tensors = {f"{index}.{name}": tensor.contiguous() for index, state in optimizer.state_dict()["state"].items()
               for name, tensor in state.items()}
    partial = Path(folder) / (STATE + ".tmp")
    save_file(tensors, partial, metadata={"step": str(step), "extra": json.dumps(extra)})
    os.replace(partial, Path(folder) / STATE)


def load_state(folder, optimizer):
    """Restores save_state's moments bit for bit into a fresh optimizer of the same model; returns (step, extra)."""
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
    return int(metadata["step"]), json.loads(metadata["extra"])
