"""config.json of a Hugging Face model folder, to and from our Config: what of it model.py implements."""
from dataclasses import asdict, fields

from nanopref.errors import UserError
from nanopref.model import Config

# What a config.json can ask for and model.py does not have. Absent means the value here.
FIXED = {"hidden_act": "silu", "mlp_bias": False, "use_sliding_window": False, "attention_dropout": 0,
         "partial_rotary_factor": 1, "rope_interleaved": False, "quantization_config": None}
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def config_to_json(config):
    """The content of config.json, as a dict."""
    family, model_type = ("Qwen2", "qwen2") if config.attention_bias else ("Llama", "llama")
    kind = "ForSequenceClassification" if config.num_labels else "ForCausalLM"
    return {"architectures": [family + kind], "model_type": model_type, "hidden_act": "silu", **asdict(config)}


def config_from_json(raw):
    """Config from the content of a config.json; UserError names the first thing that model.py does not implement."""
    model_type, architectures = raw.get("model_type"), raw.get("architectures") or ["ForCausalLM"]
    if model_type not in ("llama", "qwen2"):
        raise UserError(f"config: model_type must be llama or qwen2, not {model_type!r}")
    if not str(architectures[0]).endswith(("ForCausalLM", "ForSequenceClassification")):
        raise UserError(f"config: architectures must be ForCausalLM or ForSequenceClassification, not {architectures}")
    has_bias = model_type == "qwen2"  # Llama's attention_bias is another: it covers o_proj too
    for name, value in {**FIXED, "attention_bias": has_bias}.items():
        if raw.get(name, value) != value:
            raise UserError(f"config: {name} must be {value!r} for {model_type}, not {raw[name]!r}")
    if set(raw.get("layer_types") or []) - {"full_attention"}:
        raise UserError(f"config: layer_types must be full_attention only, not {sorted(set(raw['layer_types']))}")
    values = {f.name: raw[f.name] for f in fields(Config) if f.name in raw}
    values |= {"attention_bias": has_bias, "rope_scaling": None, **_rope(raw)}
    values["num_labels"] = 0
    if architectures[0].endswith("ForSequenceClassification"):
        values["num_labels"] = len(raw.get("id2label") or ()) or raw.get("num_labels", 2)  # 2: theirs if absent
    try:
        config = Config(**values)
    except TypeError as error:  # its text names the required fields that are absent
        raise UserError(f"config: {error}") from None
    if raw.get("head_dim") not in (None, config.head_dim):
        raise UserError(f"config: head_dim must be hidden_size / num_attention_heads = {config.head_dim}, "
                        f"not {raw['head_dim']!r}")
    return config


def _rope(raw):
    """rope_theta and rope_scaling, from where transformers 5 keeps them (rope_parameters) or 4 (rope_scaling)."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"config: rope scaling must be an object, not {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if kind == "default":
        return theta
    if kind != "llama3":
        raise UserError(f"config: rope scaling must be default or llama3, not {kind!r}")
    for name in LLAMA3:
        if not isinstance(rope.get(name), (int, float)) or not 0 < rope[name] < 1e30:
            raise UserError(f"config: llama3 rope scaling needs a positive {name}, not {rope.get(name)!r}")
    if rope["low_freq_factor"] >= rope["high_freq_factor"]:
        raise UserError("config: llama3 rope scaling needs low_freq_factor < high_freq_factor")
    return {**theta, "rope_scaling": {"rope_type": "llama3", **{name: rope[name] for name in LLAMA3}}}
