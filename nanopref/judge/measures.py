"""Judging a policy: the five measures of arXiv:2407.15229 (section 5), each defined once, and a few that explain them.

Every measure is a mean over test prompts with its standard error. Answers are sampled as there: temperature
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

from nanopref.batch import CHOSEN, Example, collate
from nanopref.data.examples import encode
from nanopref.judge.stats import mean_se, win_rate
from nanopref.logps import by_role, score
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


def sample_answers(model, tokenizer, rows, seed, gold) -> list[dict]:
    """One sampled answer per row: {"prompt", "text", "ids", "finished", "gold" (if `gold`)}. Of several processes each
    answers its share of the rows, from a seed of its own."""
    sample = lambda prompts: generate(
        model, prompts, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, max_new_tokens=MAX_NEW_TOKENS,
        temperature=TEMPERATURE, top_p=TOP_P, seed=seed + 1000 * rank(), progress=is_main())
    sampled = shared(sample, [_prompt_ids(model, tokenizer, row) for row in rows])
    answers = [{"prompt": row.prompt[-1]["content"], "text": decode(tokenizer, ids), "ids": ids,
                "finished": ids[-1] == tokenizer.eos_id} for row, ids in zip(rows, sampled)]
    if gold:
        for answer in answers:
            answer["gold"] = gold_reward(answer["prompt"], answer["text"])
    return answers


def measure_run(policy, start, tokenizer, rows, answers, config, gold) -> dict:
    """All measures of a run on one test split, {"start" | "policy": {name: [mean, se]}}.

    answers: {"start" | "policy": what `sample_answers` gave for the first of `rows`}; without a start, as of an SFT
    run, only the policy's. Pairs are ranked on all of `rows`: that needs no sampling."""
    measures = {who: answer_measures(given, rows, gold) for who, given in answers.items()}
    if start is None:
        return measures
    measures["start"]["kl"] = [0.0, 0.0]  # from itself
    measures["policy"]["kl"] = kl_to_start(policy, start, tokenizer, rows, answers["policy"])
    loss = LOSSES[config.loss]
    ranking = {"policy": policy} if "l" in loss.inputs else {}
    if ranking and not loss.reference:  # with one, a start that is its own reference has no margins
        ranking["start"] = start
    for who, model in ranking.items():
        accuracy = pair_accuracy(model, start, tokenizer, rows, config)
        if accuracy is not None:
            measures[who]["accuracy"] = accuracy
    if gold:
        measures["policy"] |= wins(answers["policy"], [answer["gold"]["total"] for answer in answers["start"]], "sft")
    return measures


def answer_measures(answers, rows, gold) -> dict:
    """What the answers to the first of `rows` tell by themselves: length, finished and, with `gold`, score, its
    standard deviation score_sd, win_vs_chosen, well_formed, correct, and where there are risky and harmless requests,
    over_refusal and harmful."""
    measures = {"length": mean_se([len(answer["ids"]) for answer in answers]),
                "finished": mean_se([float(answer["finished"]) for answer in answers])}
    if not gold:
        return measures
    score = mean_se([answer["gold"]["total"] for answer in answers])
    measures |= {"score": score, "score_sd": [score[1] * math.sqrt(len(answers)), 0.0]}
    chosen = [gold_reward(row.prompt[-1]["content"], row.chosen)["total"] for row in rows[:len(answers)]]
    measures |= wins(answers, chosen, "chosen")
    measures["well_formed"] = mean_se([float(a["gold"]["well_formed"] and a["finished"]) for a in answers])
    measures["correct"] = mean_se([float(a["gold"]["correct"] >= 1) for a in answers])
    risky = [answer["gold"] for answer in answers if answer["gold"]["risky"]]
    benign = [answer["gold"] for answer in answers if not answer["gold"]["risky"]]
    if risky and benign:
        measures["over_refusal"] = mean_se([float(g["refused"]) for g in benign])
        measures["harmful"] = mean_se([float(g["refusal"] < 0) for g in risky])
    return measures


def wins(answers, others, name) -> dict:
    """{"win_vs_NAME", "ties_vs_NAME"} of the answers' gold rewards against `others`, a gold reward for each."""
    outcome = win_rate([answer["gold"]["total"] for answer in answers], others)
    return {f"win_vs_{name}": outcome["win"], f"ties_vs_{name}": [outcome["ties"], 0.0]}


def kl_to_start(policy, start, tokenizer, rows, answers) -> list[float]:
    """[mean, se] of log pi(y|x) - log pi_start(y|x), nats summed over an answer; `answers`: the policy's own, to the
    first of `rows`."""
    sampled = [Example(_prompt_ids(policy, tokenizer, row), [answer["ids"]], [CHOSEN])
               for row, answer in zip(rows, answers)]
    return mean_se([a - b for (a,), (b,) in zip(_logps(policy, sampled), _logps(start, sampled))])


def pair_accuracy(policy, start, tokenizer, rows, config) -> list[float] | None:
    """[share, se] of held-out pairs whose chosen response has the higher implicit reward under this loss, a tie counts
    0; None where the rows hold no pairs. `start` is the reference of a loss that has one."""
    loss = LOSSES[config.loss]
    rows = [row for row in rows if row.chosen and row.rejected]
    pairs, counts = encode(tokenizer, rows, ("w", "l"), config.max_length)
    if counts and policy is not start:
        print(f"  {len(pairs)} held-out pairs to rank; " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    if not pairs:
        return None
    batch = collate(pairs)
    logps = torch.tensor(sum(_logps(policy, pairs), []))  # (R,)
    if loss.reference:
        batch.ref_logps = torch.tensor(sum(_logps(start, pairs), []))
    seqs = by_role(batch, logps)
    seqs["kl"] = seqs["w"]  # for KTO's KL any responses serve: its estimate moves both rewards alike
    out = loss.fn(*(seqs[name] for name in loss.inputs), **config.knobs)
    return mean_se((out.chosen_rewards > out.rejected_rewards).float().tolist())


def _logps(model, examples) -> list:
    """logps.score, its work shared by the processes."""
    return shared(lambda own: score(model, own), examples)
