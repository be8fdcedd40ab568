"""Weights from safetensors files that somebody else may have made: what they hold is looked at before it is loaded."""
import torch
from safetensors import SafetensorError, safe_open

from nanopref.errors import UserError, shown

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of what weights may be stored as


def read_header(paths) -> dict:
    """{tensor: its shape} of the files, read without the tensors. UserError for a tensor that is not of floats."""
    shapes = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    piece = file.get_slice(name)
                    if piece.get_dtype() not in FLOATS:
                        raise UserError(f"{path}: {shown(name)} is stored as {shown(piece.get_dtype())}, not one of "
                                        f"{', '.join(FLOATS)}: quantised weights are not read, use the original model")
                    shapes[name] = piece.get_shape()
        except SafetensorError as error:
            raise UserError(f"{path}: damaged or incomplete, download it again: {error}") from None
    return shapes


def check_shapes(path, shapes, config) -> None:
    """UserError where the sizes in config.json are not those of the file: before a model of these sizes is made."""
    layers = len({name.split(".")[2] for name in shapes if name.startswith("model.layers.")})
    embedding, gate = (shapes.get(name) or [None] for name in ("model.embed_tokens.weight",
                                                               "model.layers.0.mlp.gate_proj.weight"))
    for field, there in (("num_hidden_layers", layers), ("vocab_size", embedding[0]), ("hidden_size", embedding[-1]),
                         ("intermediate_size", gate[0])):
        if there is not None and there != getattr(config, field):
            raise UserError(f"{path}: {field} is {there} in the file, but {getattr(config, field)} in config.json: they "
                            "do not belong together, download both again")


def read_tensors(paths, device, dtype) -> dict:
    """{name: tensor} of the files. UserError for one that holds a NaN or an infinity."""
    tensors = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensors[name] = file.get_tensor(name).to(device=device, dtype=dtype, copy=True)
                if not tensors[name].isfinite().all():
                    raise UserError(f"{path}: {shown(name)} holds NaN or infinite numbers: a training that diverged, "
                                    "or a damaged file; use another model")
    return tensors


def without_copies(path, tensors, config):
    """Without what other tools store although it follows from the rest: rotary tables, and a tied head equal to the
    embedding. UserError for a tied head that differs: then config.json is wrong about it."""
    tensors = {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if config.tie_word_embeddings and head is not None and embedding is not None:
        if not torch.equal(head, embedding):
            raise UserError(f"{path}: lm_head.weight differs from model.embed_tokens.weight, but config.json says "
                            "tie_word_embeddings: true; if the head is right, set it to false")
        del tensors["lm_head.weight"]
    return tensors
