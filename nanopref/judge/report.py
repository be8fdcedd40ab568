"""The end of a run: a table before and after, answers side by side, one figure, and the run read to its user."""
import json
from pathlib import Path

import torch

from nanopref.judge.policies import answers, measure
from nanopref.judge.readings import read_run
from nanopref.run.checkpoint import load_model
from nanopref.run.config import RunConfig
from nanopref.run.distributed import is_main

# measure, label, number format
ROWS = (("score", "gold score", "{:.2f}"), ("win_vs_chosen", "win vs chosen", "{:.2f}"),
        ("ties_vs_chosen", "  of these ties", "{:.2f}"), ("win_vs_sft", "win vs start", "{:.2f}"),
        ("ties_vs_sft", "  of these ties", "{:.2f}"), ("kl", "KL to start (nats)", "{:.1f}"),
        ("length", "length (tokens)", "{:.1f}"), ("correct", "right answers", "{:.2f}"),
        ("over_refusal", "over-refusal", "{:.2f}"), ("harmful", "harm not refused", "{:.2f}"),
        ("well_formed", "well-formed", "{:.2f}"), ("finished", "finished (EOS)", "{:.2f}"),
        ("accuracy", "pair accuracy", "{:.2f}"))


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
            finish(folder, result)
        return
    policy.eval()
    start = None
    if config.stage == "po":  # as the policy was before its first step, in float32
        start = load_model(start_folder, next(policy.parameters()).device, torch.float32)[0].eval()
    told, found = {}, {}
    for split, rows in splits.tests.items():
        asked = rows[:config.prompts]
        with autocast:
            found[split] = {}
            if start is not None:
                found[split]["start"] = answers(start, tokenizer, asked, config.seed, splits.gold)
            found[split]["policy"] = answers(policy, tokenizer, asked, config.seed, splits.gold)
            told[split] = {who: measure(policy if who == "policy" else start, start, tokenizer, rows, given,
                                        found[split].get("start") if who == "policy" else None, config, splits.gold)
                           for who, given in found[split].items()}
    if not is_main():
        return
    result["measures"], result["best_accuracy"] = told, splits.best_accuracy
    name = "SFT" if config.model == "sft" else "start"
    print("\n" + table(told, {"start": name, "policy": config.loss}, splits.best_accuracy))
    if start is not None:
        first = next(iter(found))
        result["side_by_side"] = side_by_side(found[first]["start"], found[first]["policy"], name, config.loss,
                                              n=5 if splits.gold else 10)
        print("\n" + "\n".join(result["side_by_side"]))
        result["reading"] = read_run(metrics, told, config, splits.best_accuracy)
        print("\nWhat happened\n" + "\n".join(f"- {line}" for line in result["reading"]))
    with (folder / "answers.jsonl").open("w") as file:
        for split, by in found.items():
            for who, given in by.items():
                for asked, a in zip(splits.tests[split], given):
                    n = len(asked.prompt)  # messages; of one the text, of more all of them, as {"role", "content"}
                    row = {"split": split, "who": who, "prompt": a["prompt"] if n == 1 else asked.prompt,
                           "n_messages": n, "answer": a["text"], "finished": a["finished"]}
                    if splits.gold:
                        row["gold"] = a["gold"]["total"]
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    from nanopref.judge.plots import training_figure  # matplotlib takes a second to import
    print()
    training_figure(metrics, found, splits.best_accuracy, config, folder / "figure.png")
    print(f"report: {folder / 'report.json'}\nmodel:  {folder / 'model'}")
    finish(folder, result)


def finish(folder, result):
    """Writes report.json in one step: its presence is what marks a run as done."""
    partial = folder / "report.json.tmp"
    partial.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    partial.replace(folder / "report.json")


def table(measures: dict, names: dict, best_accuracy: dict,
          note="± is one standard error over the test prompts; a tie counts half a win.", rows=ROWS) -> str:
    """The measures as text: splits beside each other, start before policy, each mean with its standard error. `rows`:
    (measure, label, number format) of each line."""
    columns = [(split, who) for split in measures for who in measures[split]]
    lines = [" " * 20 + "".join(f"{split:>18}" for split, _ in columns),
             " " * 20 + "".join(f"{names[who]:>18}" for _, who in columns)]
    for key, label, form in rows:
        if not any(key in measures[split][who] for split, who in columns):
            continue
        cells = []
        for split, who in columns:
            value = measures[split][who].get(key)
            if value is None:
                cells.append("-")
            else:
                cells.append(form.format(value[0]) + (" ± " + form.format(value[1]) if value[1] else "       "))
        lines.append(f"{label:20}" + "".join(f"{cell:>18}" for cell in cells))
    lines.append(note)
    if best_accuracy:
        best = ", ".join(f"{split} {value:.2f}" for split, value in best_accuracy.items())
        lines.append(f"Best possible pair accuracy on these noisy labels: {best}.")
    return "\n".join(lines)


def side_by_side(before, after, name_before, name_after, n=5) -> list[str]:
    """The first `n` prompts with both answers, one string per line."""
    lines, width = [], max(len(name_before), len(name_after))
    for a, b in list(zip(before, after))[:n]:
        lines.append(f"> {a['prompt'][-300:]}")
        for name, answer in ((name_before, a), (name_after, b)):
            gold = f" [{answer['gold']['total']:+.1f}]" if "gold" in answer else ""
            lines.append(f"  {name:{width}}{gold} {answer['text'][:400]}")
    return lines


