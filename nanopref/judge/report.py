"""The end of a run: a table before and after, answers side by side, one figure, and the run read to its user."""
import json
import random
from pathlib import Path

import torch

from nanopref.errors import one_line
from nanopref.judge.in_words import read_run
from nanopref.judge.measures import measure_run, sample_answers
from nanopref.judge.stats import wilson
from nanopref.judge.tables import aligned, interval, plus_minus
from nanopref.run.checkpoint import load_model
from nanopref.run.config import RunConfig
from nanopref.run.disk import write_json, write_jsonl
from nanopref.run.distributed import is_main
from nanopref.run.reuse import report_code

# measure, label, digits
ROWS = (("score", "gold score", 2), ("win_vs_chosen", "win vs chosen", 2), ("ties_vs_chosen", "  of these ties", 2),
        ("win_vs_sft", "win vs start", 2), ("ties_vs_sft", "  of these ties", 2), ("kl", "KL to start (nats)", 1),
        ("length", "length (tokens)", 1), ("correct", "right answers", 2), ("over_refusal", "over-refusal", 2),
        ("harmful", "harm not refused", 2), ("well_formed", "well-formed", 2), ("finished", "finished (EOS)", 2),
        ("accuracy", "pair accuracy", 2))


def report(config: RunConfig, folder: Path, start_folder, policy, tokenizer, splits, autocast) -> None:
    """Judge the policy on every test split and write report.json, answers.jsonl and figure.png into `folder`.

    report.json is written last: its presence is what marks a run as done. Of several processes all judge, each its
    share, and the main one writes.
    """
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = {"config": {"loss": config.loss, "knobs": config.knobs, "data": config.data, "seed": config.seed},
              "last_step": metrics[-1], "measures": {}}
    if config.stage == "base":
        if is_main():
            finish(folder, result, config)
        return
    policy.eval()
    start = None
    if config.stage == "po":  # as the policy was before its first step, in float32
        start = load_model(start_folder, next(policy.parameters()).device, torch.float32)[0].eval()
    answers, measures = {}, {}
    for split, rows in splits.tests.items():
        asked, models = rows[:config.prompts], {"start": start, "policy": policy}
        with autocast:
            answers[split] = {who: sample_answers(model, tokenizer, asked, config.seed, splits.gold)
                            for who, model in models.items() if model is not None}
            measures[split] = measure_run(policy, start, tokenizer, rows, answers[split], config, splits.gold)
    if not is_main():
        return
    result["measures"], result["best_accuracy"] = measures, splits.best_accuracy
    name = "SFT" if config.model == "sft" else "start"
    print("\n" + table(measures, {"start": name, "policy": config.loss}, splits.best_accuracy))
    if start is not None:
        first = next(iter(answers.values()))
        result["side_by_side"] = side_by_side(first["start"], first["policy"], name, config.loss,
                                              n=5 if splits.gold else 10, seed=config.seed)
        print("\n" + "\n".join(result["side_by_side"]))
        result["reading"] = read_run(metrics, measures, config, splits.best_accuracy)
        print("\nWhat happened\n" + "\n".join(f"- {line}" for line in result["reading"]))
    write_answers(folder / "answers.jsonl", answers, splits)
    from nanopref.judge.plots import training_figure  # matplotlib takes a second to import
    print()
    training_figure(metrics, answers, splits.best_accuracy, config, folder / "figure.png")
    print(f"report: {folder / 'report.json'}\nmodel:  {folder / 'model'}")
    finish(folder, result, config)


def write_answers(path, answers, splits) -> None:
    """All answers, {split: {"start" | "policy": answers}}, as JSONL."""
    rows = []
    for split, by in answers.items():
        for who, given in by.items():
            for asked, a in zip(splits.tests[split], given):
                n = len(asked.prompt)  # messages; of one the text, of more all of them, as {"role", "content"}
                rows.append({"split": split, "who": who, "prompt": a["prompt"] if n == 1 else asked.prompt,
                             "n_messages": n, "answer": a["text"], "finished": a["finished"],
                             **({"gold": a["gold"]["total"]} if splits.gold else {})})
    write_jsonl(path, rows)


def finish(folder, result, config):
    """Writes report.json in one step, as its presence is what marks a run as done; with the code that made it."""
    write_json(folder / "report.json", {**result, "code": report_code(config)})


def table(measures: dict, names: dict, best_accuracy: dict,
          note="± is one standard error, clustered by what prompts are about; a tie is half a win. [ ]: 95 %.",
          rows=ROWS) -> str:
    """The measures as text: splits beside each other, start before policy, each mean with its standard error, a share
    that is all or nothing with its 95 % interval. `rows`: (measure, label, digits) of each line."""
    columns = [(split, who) for split in measures for who in measures[split] if who in names]
    lines = [["", *(split for split, _ in columns)], ["", *(names[who] for _, who in columns)]]
    for key, label, digits in rows:
        values = [measures[split][who].get(key) for split, who in columns]
        if any(value is not None for value in values):
            n = [measures[split][who].get("n", {}).get(key) for split, who in columns]
            lines.append([label, *(_cell(value, digits, of) for value, of in zip(values, n))])
    text = [aligned(lines, "<20", ">18"), note]
    if best_accuracy:
        best = ", ".join(f"{split} {value:.2f}" for split, value in best_accuracy.items())
        text.append(f"Best possible pair accuracy on these noisy labels: {best}.")
    return "\n".join(text)


def _cell(value, digits, n) -> str:
    """A measure as text; `n`: of how many clusters it is a share."""
    if value is None:
        return "-"
    if n and not value[1]:
        return interval((value[0], *wilson(value[0] * n, n)))
    if value[1] == 0:  # known, or not estimated
        return f"{value[0]:.{digits}f}" + " " * 7  # where the ± would stand
    return plus_minus(value, digits)


def side_by_side(before, after, name_before, name_after, n=5, seed=0) -> list[str]:
    """`n` prompts, drawn by `seed`, in their order, with both answers; one string per line, the first says how they
    were drawn."""
    drawn = sorted(random.Random(seed).sample(range(len(after)), min(n, len(after))))
    lines = [f"{len(drawn)} of {len(after)} prompts, drawn by --seed {seed}"]
    width = max(len(name_before), len(name_after))
    for i in drawn:
        lines.append(f"> {one_line(after[i]['prompt'][-300:])}")
        for name, answer in ((name_before, before[i]), (name_after, after[i])):
            gold = f" [{answer['gold']['total']:+.1f}]" if "gold" in answer else ""
            lines.append(f"  {name:{width}}{gold} {one_line(answer['text'], 400)}")
    return lines
