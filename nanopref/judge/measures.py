"""Judging a policy: the five measures of arXiv:2407.15229 (section 5), each defined once, and a few that explain them.

Every measure is a mean over test prompts with its standard error, clustered by what the prompts are about. Answers are
sampled as there: temperature 0.7, top-p 0.95, at most 256 tokens.

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
import statistics

import torch

from nanopref.batch import CHOSEN, Example, collate
from nanopref.data.examples import encode
from nanopref.judge.stats import mean, mean_se, outcomes, paired
from nanopref.logps import by_role, score
from nanopref.losses import LOSSES
from nanopref.run.distributed import is_main, rank, shared
from nanopref.sample import generate
from nanopref.text import decode, encode_prompt, truncate
from nanopref.world.gold import gold_reward, parse_question

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


def clusters_of(prompts, gold) -> list:
    """What each prompt is about: answers about one thing are right or wrong together. On the embedded world, the
    subject of the question; elsewhere the prompt itself. A prompt is a Row's or, of the world, its text."""
    if not gold:
        return [str(prompt) for prompt in prompts]
    questions = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    return [parsed[2] if (parsed := parse_question(question)) else question for question in questions]


def measure_run(policy, start, tokenizer, rows, answers, config, gold) -> dict:
    """All measures of a run on one test split, {"start" | "policy" | "gain": {name: [mean, se]}}; "gain" is policy
    minus start, prompt by prompt, of every measure that both have. Errors are clustered: see stats.py, `clusters_of`.
    "n" of start and policy: {name: number of clusters} of the measures that are shares.

    answers: {"start" | "policy": what `sample_answers` gave for the first of `rows`}; without a start, as of an SFT
    run, only the policy's. Pairs are ranked on all of `rows`: that needs no sampling."""
    values, clusters = {who: answer_values(given, rows, gold) for who, given in answers.items()}, clusters_of(
        [row.prompt for row in rows], gold)
    if gold and start is not None:
        values["policy"] |= wins(values["policy"]["score"], values["start"]["score"], "sft")
    measures = {who: summary(by_prompt, clusters) for who, by_prompt in values.items()}
    if start is None:
        return measures
    measures["start"]["kl"] = [0.0, 0.0]  # from itself
    measures["policy"]["kl"] = kl_to_start(policy, start, tokenizer, rows, answers["policy"], gold)
    loss = LOSSES[config.loss]
    ranking = {"policy": policy} if "l" in loss.inputs else {}
    if ranking and not loss.reference:  # with one, a start that is its own reference has no margins
        ranking["start"] = start
    for who, model in ranking.items():
        accuracy = pair_accuracy(model, start, tokenizer, rows, config, gold)
        if accuracy is not None:
            measures[who]["accuracy"] = accuracy
    both = {name: [None if None in pair else pair[0] - pair[1] for pair in zip(given, values["start"][name])]
            for name, given in values["policy"].items() if name in values["start"]}
    measures["gain"] = summary(both, clusters)
    del measures["gain"]["n"]
    return measures


SHARES = ("finished", "win_vs_chosen", "win_vs_sft", "well_formed", "correct", "over_refusal", "harmful")


def answer_values(answers, rows, gold) -> dict:
    """{measure: a value per answer} of what the answers to the first of `rows` tell by themselves: length, finished
    and, with `gold`, score, win_vs_chosen, well_formed, correct, over_refusal and harmful; None where a prompt is not
    of that kind."""
    values = {"length": [float(len(answer["ids"])) for answer in answers],
              "finished": [float(answer["finished"]) for answer in answers]}
    if not gold:
        return values
    told = [answer["gold"] for answer in answers]
    values["score"] = [g["total"] for g in told]
    chosen = [gold_reward(row.prompt[-1]["content"], row.chosen)["total"] for row in rows[:len(answers)]]
    values |= wins(values["score"], chosen, "chosen")
    values["well_formed"] = [float(g["well_formed"] and answer["finished"]) for g, answer in zip(told, answers)]
    values["correct"] = [float(g["correct"] >= 1) for g in told]
    values["over_refusal"] = [None if g["risky"] else float(g["refused"]) for g in told]
    values["harmful"] = [float(g["refusal"] < 0) if g["risky"] else None for g in told]
    return values


def wins(scores, others, name) -> dict:
    """{"win_vs_NAME", "ties_vs_NAME"}, a value per prompt, of gold rewards against `others`."""
    won = outcomes(scores, others)
    return {f"win_vs_{name}": won, f"ties_vs_{name}": [float(w == 0.5) for w in won]}


def summary(values, clusters) -> dict:
    """{measure: [mean, se]} of `answer_values`; with a score also its standard deviation, score_sd. A measure that no
    prompt is of a kind for is left out. "n" as in `measure_run`."""
    measures = {"n": {}}
    for name, by_prompt in values.items():
        known = [(value, cluster) for value, cluster in zip(by_prompt, clusters) if value is not None]
        if name.startswith("ties"):  # told beside the wins, without an error of their own
            measures[name] = [mean(by_prompt), 0.0]
        elif known:
            measures[name] = mean_se(*zip(*known))
            if name in SHARES:
                measures["n"][name] = len({cluster for _, cluster in known})
    if "score" in values and len(values["score"]) > 1:
        measures["score_sd"] = [statistics.stdev(values["score"]), 0.0]
    return measures


def kl_to_start(policy, start, tokenizer, rows, answers, gold) -> list[float]:
    """[mean, se] of log pi(y|x) - log pi_start(y|x), nats summed over an answer; `answers`: the policy's own, to the
    first of `rows`."""
    sampled = [Example(_prompt_ids(policy, tokenizer, row), [answer["ids"]], [CHOSEN])
               for row, answer in zip(rows, answers)]
    return paired(*(sum(_logps(model, sampled), []) for model in (policy, start)),
                  clusters_of([row.prompt for row, _ in zip(rows, answers)], gold))


def pair_accuracy(policy, start, tokenizer, rows, config, gold) -> list[float] | None:
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
    right = (out.chosen_rewards > out.rejected_rewards).float()
    return mean_se(right.tolist(), clusters_of([pair.row.prompt for pair in pairs], gold))


def _logps(model, examples) -> list:
    """logps.score, its work shared by the processes."""
    return shared(lambda own: score(model, own), examples)
