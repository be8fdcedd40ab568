"""TRL's DPOTrainer as a contender: the same weights, pairs, batch and optimiser. Needs `pip install trl`."""
import tempfile

import torch

from nanopref.bench.setting import EOS, PAD
from nanopref.errors import UserError
from nanopref.run.hf_config import config_to_json


def words(ids) -> str:
    """Token ids as a text that `word_tokenizer` turns into the same ids."""
    return " ".join("</s>" if i == EOS else f"w{i}" for i in ids)


def word_tokenizer(vocab_size: int):
    """A tokenizer of transformers in which token i is the word "wi": so texts can hold any ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    names = {**{f"w{i}": i for i in range(3, vocab_size)}, "<pad>": PAD, "</s>": EOS, "<unk>": 2}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def transformers_model(model):
    """transformers' own model with the weights of ours."""
    from transformers import LlamaConfig, LlamaForCausalLM
    raw = config_to_json(model.config)
    ours = ("architectures", "model_type", "num_labels")
    kept = {k: v for k, v in raw.items() if k not in ours}
    theirs = LlamaForCausalLM(LlamaConfig(**kept)).to(next(model.parameters()).device)
    theirs.load_state_dict(model.state_dict(), strict=not model.config.tie_word_embeddings)  # ours has no tied lm_head
    return theirs


def dpo_config(folder, batch: int, best: bool, device: str, **more):
    """TRL's configuration. Default: what DPOConfig gives, so with a reference model beside the policy and gradient
    checkpointing; only precision is made ours. Best: reference log-probs computed beforehand, no checkpointing."""
    from trl import DPOConfig
    if best:
        more |= dict(precompute_ref_log_probs=True, precompute_ref_batch_size=batch, gradient_checkpointing=False)
    return DPOConfig(str(folder), per_device_train_batch_size=batch, beta=0.1, report_to="none", disable_tqdm=True,
                     use_cpu=device == "cpu", bf16=device == "cuda", **more)


def trl_steps(model, examples, batch: int, best: bool, lr: float):
    """A function that trains one pass over `examples` with TRL, `batch` pairs a step: its collator and training_step,
    our clipping, AdamW (fused, its default). Its loader, callbacks and logging are left out."""
    policy, given, backward = trl_backward(model, examples, batch, best)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    def run():
        for start in range(0, len(given), batch):
            backward(given[start:start + batch])
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return run


def trl_backward(model, examples, batch: int, best: bool) -> tuple:
    """(TRL's policy, its rows of the examples, a function that makes the gradients of some rows). Where it is to be at
    its best, batches are of pairs of like length: all pairs are sorted, which is finer than its `group_by_length`."""
    try:
        from datasets import Dataset
        from transformers.utils import logging
        from trl import DPOTrainer
    except ImportError as error:
        raise UserError(f"TRL is not installed ({error.name} is missing): pip install trl, or leave out "
                        "--peers") from None
    logging.disable_progress_bar()
    device = next(model.parameters()).device
    rows = [{"prompt": words(e.prompt), "chosen": " " + words(e.responses[0]), "rejected": " " + words(e.responses[1])}
            for e in examples]
    with tempfile.TemporaryDirectory() as folder:
        theirs = transformers_model(model)
        theirs.save_pretrained(folder)
        theirs.config._name_or_path = folder  # from where it loads its reference model
        trainer = DPOTrainer(theirs, processing_class=word_tokenizer(model.config.vocab_size),
                             train_dataset=Dataset.from_list(rows),
                             args=dpo_config(folder, batch, best, device.type, max_length=None))
    trainer.current_gradient_accumulation_steps = 1  # what its train() would set
    given = list(trainer.train_dataset)
    for e, row in zip(examples, given):
        if (e.prompt, *e.responses) != (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]):
            raise UserError("TRL was given other tokens than we were: this benchmark must be mended")
    if best:
        given.sort(key=lambda row: len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])))
    policy, collate = trainer.accelerator.prepare_model(trainer.model).train(), trainer.data_collator
    if trainer.args.gradient_checkpointing:  # what its train() would do
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    if trainer.model.is_gradient_checkpointing == best:
        raise UserError("TRL does not follow its own gradient_checkpointing: this benchmark must be mended")
    return policy, given, lambda rows: trainer.training_step(policy, collate(rows))
