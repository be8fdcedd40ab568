"""Judging a policy: document 004's five measures (section 5), each defined once, and a few that explain them.

Every measure is a mean over test prompts with its standard error. Answers are sampled as in document 004: temperature
0.7, top-p 0.95, at most 256 tokens.

    score          gold reward of the answer
    win_vs_chosen  share of prompts on which the answer's gold reward is above the chosen response's; a tie counts 1/2
    win_vs_sft     the same against the start model's answer to the same prompt
    kl             log pi(y|x) - log pi_start(y|x), nats, SUMMED over the answer, y sampled by the policy: an estimate
                   of KL(pi || pi_start) up to the sampling temperature and top-p, which both log-probs ignore
    length         tokens of the answer, EOS included
    accuracy       share of held-out pairs to whose chosen response the loss's own implicit reward gives more

With the gold reward also: correct (the right answer, or refusing a risky request for the right reason), over_refusal
(of harmless requests), harmful (risky requests not refused), well_formed (every sentence is one of this world, EOS
reached).
"""
import math

import torch

from nanopref.batch import CHOSEN, Example, by_role, collate, score
from nanopref.data.examples import encode
from nanopref.judge.stats import mean_se, win_rate
from nanopref.losses import LOSSES
from nanopref.run.distributed import is_main, rank, shared
from nanopref.sample import generate
from nanopref.text import decode, encode_prompt, truncate
from nanopref.world.gold import gold_reward

MAX_NEW_TOKENS, TEMPERATURE, TOP_P = 256, 0.7, 0.95


def _prompt_ids(model, tokenizer, row) -> list[int]:
    """Ids of a row's prompt, cut on the left where an answer would not fit behind it into the model's context."""
    context = model.config.max_position_embeddings
    room = [0] * min(MAX_NEW_TOKENS, context // 2)
    return truncate(tokenizer, encode_prompt(tokenizer, row.prompt), [room], context)[0]


def answers(model, tokenizer, rows, seed, gold) -> list[dict]:
    """One sampled answer per row: {"prompt", "text", "ids", "finished", "gold" (if `gold`)}. Of several processes each
    answers its share of the rows, from a seed of its own."""
    sample = lambda prompts: generate(
        model, prompts, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, max_new_tokens=MAX_NEW_TOKENS,
        temperature=TEMPERATURE, top_p=TOP_P, seed=seed + 1000 * rank(), progress=is_main())
    sampled = shared(sample, [_prompt_ids(model, tokenizer, row) for row in rows])
    found = [{"prompt": row.prompt[-1]["content"], "text": decode(tokenizer, ids), "ids": ids,
              "finished": ids[-1] == tokenizer.eos_id} for row, ids in zip(rows, sampled)]
    if gold:
        for answer in found:
            answer["gold"] = gold_reward(answer["prompt"], answer["text"])
    return found


def measure(policy, start, tokenizer, rows, found, start_found, config, gold) -> dict:
    """All measures of `found`, the policy's answers to the first of `rows`, against the start model's, as
    {name: [mean, se]}. Pairs are ranked on all of `rows`: that needs no sampling."""
    all_rows, rows = rows, rows[:len(found)]
    result = {"length": mean_se([len(answer["ids"]) for answer in found]),
              "finished": mean_se([float(answer["finished"]) for answer in found])}
    if start is not None:
        sampled = [Example(_prompt_ids(policy, tokenizer, row), [answer["ids"]], [CHOSEN])
                   for row, answer in zip(rows, found)]
        logps = _logps(policy, sampled)
        start_logps = logps if policy is start else _logps(start, sampled)
        result["kl"] = mean_se([a - b for (a,), (b,) in zip(logps, start_logps)])
        entry = LOSSES[config.loss]
        if "l" in entry.inputs and (policy is not start or not entry.reference):  # against itself it has no margins
            correct = _correct_pairs(policy, start, tokenizer, all_rows, config)
            if correct:
                result["accuracy"] = mean_se(correct)
    if not gold:
        return result
    total = [answer["gold"]["total"] for answer in found]
    result["score"] = mean_se(total)
    result["score_sd"] = [result["score"][1] * math.sqrt(len(total)), 0.0]
    chosen = [gold_reward(row.prompt[-1]["content"], row.chosen)["total"] for row in rows]
    versus = {"win_vs_chosen": chosen}
    if start_found is not None:
        versus["win_vs_sft"] = [answer["gold"]["total"] for answer in start_found]
    for name, others in versus.items():
        outcome = win_rate(total, others)
        result[name], result[name.replace("win", "ties")] = outcome["win"], [outcome["ties"], 0.0]
    risky = [answer["gold"] for answer in found if answer["gold"]["risky"]]
    benign = [answer["gold"] for answer in found if not answer["gold"]["risky"]]
    result["well_formed"] = mean_se([float(a["gold"]["well_formed"] and a["finished"]) for a in found])
    result["correct"] = mean_se([float(a["gold"]["correct"] >= 1) for a in found])
    if risky and benign:
        result["over_refusal"] = mean_se([float(g["refused"]) for g in benign])
        result["harmful"] = mean_se([float(g["refusal"] < 0) for g in risky])
    return result


def _logps(model, examples) -> list:
    """batch.score, its work shared by the processes."""
    return shared(lambda own: score(model, own), examples)


def _correct_pairs(policy, start, tokenizer, rows, config) -> list[float]:
    """1.0 per held-out pair whose chosen response has the higher implicit reward under this loss, else 0.0;
    an empty list where the rows hold no pairs."""
    entry = LOSSES[config.loss]
    rows = [row for row in rows if row.chosen and row.rejected]
    pairs, counts = encode(tokenizer, rows, ("w", "l"), config.max_length)
    if counts and policy is not start:
        print(f"  {len(pairs)} held-out pairs to rank; " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    if not pairs:
        return []
    batch = collate(pairs)
    logps = torch.tensor(sum(_logps(policy, pairs), []))
    if entry.reference:
        batch.ref_logps = torch.tensor(sum(_logps(start, pairs), []))
    seqs = by_role(batch, logps)
    seqs["kl"] = seqs["w"]  # any responses will do: a KL estimate moves both rewards alike
    out = entry.fn(*(seqs[name] for name in entry.inputs), **config.knobs)
    return (out.chosen_rewards > out.rejected_rewards).float().tolist()
