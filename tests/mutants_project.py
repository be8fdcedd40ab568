"""Bugs of one line anywhere in the project, and whether the tests notice them.

    python tests/mutants_project.py                 # all of them, a quarter of an hour on two cores
    python tests/mutants_project.py --only sample   # those in files with that in their name

Each bug is put into a copy of the project, and the fast tests that go with the file are run there until one fails. A
bug that no test of TESTS notices survives, and then either a test is missing or the bug is none. Three kinds: those that
a review had found to survive, some of our own, and some by a reader of the code who had not seen the tests. The bugs in
losses, and the misprints of the texts, are in tests/mutants.py.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
# Tests that go with a file, beside those that are named like it; the others are not run.
TESTS = {"model": "transformers equations", "logps": "batch step equations", "losses": "equations", "rl": "equations",
         "examples": "data", "files": "data", "formats": "data", "labels": "world", "gold": "world", "language": "world",
         "training": "optimisation train", "reference": "checks train reuse",
         "dataset": "config data train", "config": "seeds train", "reuse": "train seeds", "measures": "evaluate stats",
         "measures_rm": "evaluate_rm", "stats": "evaluate", "compare": "judges", "train_po": "optimisation step train",
         "train_rm": "optimisation reward", "source": "reuse", "judging": "judges", "writers": "world",
         "reward": "evaluate_rm", "metrics": "equations", "text": "data", "weights": "checkpoint",
         "checkpoint": "reward disk", "exact": "equations", "batch": "optimisation"}


class Bug(NamedTuple):
    kind: str  # listed, own or blind
    file: str
    old: str   # must occur exactly once in the file
    new: str
    what: str


BUGS = [Bug(*line) for line in (
    ("listed", "nanopref/run/training.py",
     'min((step + 1) / (0.1 * steps + 1), (steps - step) / (0.9 * steps))',
     '(steps - step) / steps',
     'warm-up deleted'),
    ("listed", "nanopref/run/training.py",
     'weight_decay=0.0',
     'weight_decay=0.1',
     'weight decay'),
    ("listed", "nanopref/run/training.py",
     'betas=(0.9, 0.99)',
     'betas=(0.9, 0.999)',
     'Adam remembers ten times longer'),
    ("listed", "train_po.py",
     'clip_grad_norm_(forward.parameters(), 1.0)',
     'clip_grad_norm_(forward.parameters(), 1e9)',
     'no clipping'),
    ("listed", "train_rm.py",
     'clip_grad_norm_(forward.parameters(), 1.0)',
     'clip_grad_norm_(forward.parameters(), 1e9)',
     'no clipping'),
    ("listed", "nanopref/run/training.py",
     'abs(loss) < float("inf") and grad_norm < float("inf")',
     'abs(loss) < float("inf")',
     'a NaN gradient is not noticed'),
    ("listed", "nanopref/judge/measures.py",
     'TEMPERATURE, TOP_P = 256, 0.7, 0.95',
     'TEMPERATURE, TOP_P = 256, 1.0, 1.0',
     'answers sampled at temperature and top-p 1'),
    ("listed", "nanopref/run/metrics.py",
     'w - l > TIE',
     'w - l >= 0',
     'a tie counts as right'),
    ("listed", "nanopref/judge/measures.py",
     'out.chosen_rewards > out.rejected_rewards',
     'out.chosen_rewards >= out.rejected_rewards',
     'a tie counts as right'),
    ("listed", "nanopref/reward.py",
     '(ranked[better] > ranked[worse])',
     '(ranked[better] >= ranked[worse])',
     'a tie counts as right'),
    ("listed", "nanopref/judge/measures_rm.py",
     '(margin > 0).double()',
     '(margin >= 0).double()',
     'a tie counts as right'),
    ("listed", "nanopref/batch.py",
     'random.Random(f"{seed}-{epoch}")',
     'random.Random(seed + epoch)',
     'epoch 1 of seed 0 is epoch 0 of seed 1'),
    ("listed", "nanopref/reward.py",
     '(scores[:, better] - scores[:, worse])',
     '(scores[:, better] - scores[:, worse]).abs()',
     'a label against the scores demands a margin, too'),
    ("listed", "nanopref/run/reference.py",
     'digest(start), precision, ids, code',
     'digest(start), ids, code',
     'the cache does not know the precision'),
    ("listed", "nanopref/losses.py",
     'clamp(max=-torch.finfo(s.logp.dtype).eps)',
     'clamp(max=-1e-4)',
     'ORPO has no gradient near p = 1'),
    ("listed", "nanopref/run/checkpoint.py",
     'normal_(std=0.02)',
     'normal_(std=1.0)',
     'a new head that is sure of itself'),
    ("listed", "nanopref/rl.py",
     'gamma: float = 1.0, lam: float = 0.95',
     'gamma: float = 0.99, lam: float = 0.95',
     'rewards are discounted by default'),
    ("own", "nanopref/model.py",
     'self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))',
     'self.down_proj(F.silu(self.up_proj(x)) * self.gate_proj(x))',
     'gate and up swapped'),
    ("own", "nanopref/text.py",
     'return [self.bos_id] + ids if self.wants_bos and ids[:1] != [self.bos_id] else ids',
     'return [self.bos_id] + ids if self.wants_bos else ids',
     'two BOS'),
    ("own", "nanopref/text.py",
     '.ids + [tokenizer.eos_id]',
     '.ids',
     'a response without its end'),
    ("own", "nanopref/batch.py",
     'for start in range(0, len(order) - batch_size + 1, batch_size)',
     'for start in range(0, len(order) - batch_size, batch_size)',
     'the last whole batch is left out'),
    ("own", "nanopref/logps.py",
     'batch.place - 1)',
     'batch.place)',
     'no shift'),
    ("own", "nanopref/logps.py",
     'if len(hidden) * model.config.vocab_size <= LOGITS',
     'if True',
     'never in chunks'),
    ("own", "nanopref/losses.py",
     'total = out.loss.sum() / (n_pairs or len(out.loss))',
     'total = out.loss.sum() / len(out.loss)',
     'accumulation is no mean over the step'),
    ("own", "nanopref/reward.py",
     'hidden[batch.last]',
     'hidden[batch.last - 1]',
     'reward read one token early'),
    ("own", "nanopref/sample.py",
     'if token == eos_id or',
     'if',
     'an answer goes on past its end'),
    ("own", "nanopref/sample.py",
     '2 * len(running) <= len(rows)',
     'len(running) < 0',
     'finished rows are never dropped'),
    ("own", "nanopref/data/examples.py",
     '("l", REJECTED, row.rejected)',
     '("l", REJECTED, row.chosen)',
     'both sides of a pair are the chosen one'),
    ("own", "nanopref/data/examples.py",
     'random.Random(seed).shuffle(order)',
     'pass',
     "mismatched responses are always the next row's"),
    ("own", "nanopref/data/examples.py",
     'len(set(map(tuple, responses))) < len(responses)',
     'False',
     'pairs equal after cutting are kept'),
    ("own", "nanopref/world/labels.py",
     'rng.random() < preference_probability(gold_1, gold_2)',
     'gold_1 > gold_2',
     'labels without noise'),
    ("own", "nanopref/world/labels.py",
     'return 1 / (1 + math.exp((gold_2 - gold_1) / TEMPERATURE))',
     'return 1 / (1 + math.exp((gold_1 - gold_2) / TEMPERATURE))',
     'labels turned round'),
    ("own", "nanopref/world/gold.py",
     'OVER_REFUSED = -1.5',
     'OVER_REFUSED = 1.5',
     'refusing pays'),
    ("own", "nanopref/run/dataset.py",
     'TEST_FRACTION, seed=0',
     'TEST_FRACTION, seed=config.seed',
     'another seed, other test prompts'),
    ("own", "nanopref/run/dataset.py",
     'row for row in rows["train"] if row.key not in tested',
     'row for row in rows["train"]',
     'test prompts stay in training'),
    ("own", "nanopref/run/training.py",
     'if step < first',
     'if step <= first',
     'a step is skipped on --resume'),
    ("own", "nanopref/run/reference.py",
     'path.exists) and not fresh',
     'path.exists)',
     '--fresh keeps the cache'),
    ("own", "nanopref/run/reuse.py",
     'if k not in NOT_DECIDING',
     'if k not in NOT_DECIDING and k != "lr"',
     'the learning rate does not decide'),
    ("own", "nanopref/run/reuse.py",
     '>= config.prompts',
     '> 0',
     'more prompts are not answered'),
    ("own", "nanopref/run/config.py",
     'self.seed if self.model == "sft" else 0',
     '0',
     "every seed's SFT is seed 0's"),
    ("own", "nanopref/run/metrics.py",
     '(logps - joined(name, lambda s: s.ref_logp)).mean()',
     'logps.mean()',
     'change is the value itself'),
    ("own", "nanopref/judge/measures.py",
     'seed=seed + 1000 * rank()',
     'seed=0',
     "every seed's answers are drawn alike"),
    ("own", "nanopref/judge/stats.py",
     '0.5 if a == b',
     '1.0 if a == b',
     'a tie is a win'),
    ("own", "train_rm.py",
     'torch.manual_seed(config.seed)',
     'torch.manual_seed(0)',
     'every seed has the same new head'),
    ("own", "nanopref/run/checkpoint.py",
     'save_state(folder, *training)',
     'save_state(folder, training[0], 0)',
     'resume begins at 0'),
    ("own", "nanopref/run/checkpoint.py",
     'os.replace(folder, old)',
     'shutil.rmtree(folder)',
     'a kill there loses the model'),
    ("own", "nanopref/judge/measures.py",
     'for model in (policy, start))',
     'for model in (start, policy))',
     'KL with the wrong sign'),
    ("own", "nanopref/judge/stats.py",
     'G / (G - 1) * sum',
     'sum',
     'the standard error of a population'),
    ("own", "nanopref/judge/in_words.py",
     'or not steps or config.epochs < 2',
     'or not steps',
     'noise is learnt by heart in one epoch'),
    ("own", "nanopref/world/writers.py",
     'FACTS[relation, subject]',
     "FACTS[relation, subject] + 'x'",
     'no writer knows a fact'),
    ("own", "nanopref/model.py",
     '1 - kept',
     'kept',
     'rope scaling: the wrong pairs go slower'),
    ("own", "nanopref/model.py",
     'is_causal=is_causal',
     'is_causal=False',
     'the future is seen'),
    ("own", "nanopref/rl.py",
     'ratio > 1 + epsilon, ratio < 1 - epsilon',
     'ratio < 1 + epsilon, ratio > 1 - epsilon',
     'the clip stops what it should let through'),
    ("own", "nanopref/run/checks.py",
     'batch.lengths.sqrt()',
     'batch.lengths',
     'a long response may be far off'),
    ("own", "nanopref/run/checkpoint.py",
     'tensors.pop("lm_head.weight", None)',
     'None',
     "a classifier keeps the language model's head"),
    ("own", "nanopref/run/source.py",
     'is_docstring(part)',
     'False',
     'a docstring makes a new run'),
    ("own", "nanopref/run/disk.py",
     'remove(folder / "report.json")',
     'None',
     'a run that is redone still counts as done'),
    ("own", "nanopref/judge/measures.py",
     'None if g["risky"] else float(g["refused"])',
     'float(g["refused"])',
     'refusing harm counts as over-refusal'),
    ("own", "nanopref/judge/compare.py",
     '0 if low > 0.5',
     '0 if high > 0.5',
     'a judge favours A within the noise'),
    ("own", "nanopref/judge/judging.py",
     '1 - abs(verdict(p) - verdict(q))',
     'abs(verdict(p) - verdict(q))',
     'agreement is disagreement'),
    ("own", "nanopref/data/hub.py",
     'if named_file:',
     'if not named_file:',
     'a file in a repository is not told from a repository'),
    ("blind", "nanopref/model.py",
     '/ (2 * math.pi * periods)',
     '/ periods',
     'Llama-3 rope scaling measures turns in radians (factor 2 '
     'pi dropped), so the wrong frequency pairs are slowed down.'),
    ("blind", "nanopref/text.py",
     'tokenizer.encode_special_tokens = True',
     'tokenizer.encode_special_tokens = False',
     "A response text that spells '<|im_end|>' is encoded as "
     'the real end-of-turn token, so data can end its own turn.'),
    ("blind", "nanopref/batch.py",
     'random.Random(f"{seed}-{epoch}")',
     'random.Random(f"{seed}")',
     'Every epoch goes through the examples in the same order, and leaves out the same remainder each time.'),
    ("blind", "nanopref/logps.py",
     'd_head += d_logits.T @ hidden[part]',
     'd_head = (d_logits.T @ hidden[part]).to(head.dtype)',
     "Under autocast with more than one chunk the head's gradient is that of the last chunk only."),
    ("blind", "nanopref/losses.py",
     'kl.log_ratio.mean().clamp(min=0).detach()',
     'kl.log_ratio.clamp(min=0).mean().detach()',
     'KTO clamps every log-ratio before the mean instead of the '
     'mean itself, so z0 is biased upwards (invisible at step 0).'),
    ("blind", "nanopref/reward.py",
     '.gather(1, batch.group[:, None])[:, 0]',
     '[:, 0]',
     "Every annotators' group is trained and scored with head 0; the other heads stay random."),
    ("blind", "nanopref/sample.py",
     'context - len(asked[0]))',
     'context - len(asked[-1]))',
     'Shorter prompts of a batch are stopped where the longest '
     'prompt fills the context, so their answers lose their ends.'),
    ("blind", "nanopref/rl.py",
     'torch.expm1(-log_ratio) + log_ratio',
     'torch.expm1(log_ratio) - log_ratio',
     'k3 has the ratio upside down: no longer an unbiased estimate of KL(pi || pi_ref) on samples from pi.'),
    ("blind", "nanopref/data/examples.py",
     'other.responses[i % len(other.responses)]',
     'other.responses[0]',
     "KTO's KL is estimated on other prompts' chosen responses only, never on rejected ones of pairs."),
    ("blind", "nanopref/data/examples.py",
     'for i in range(0, len(piece), room)]',
     'for i in range(0, len(piece), max_length)]',
     'Long plain texts lose one token at every boundary between two pieces.'),
    ("blind", "nanopref/data/files.py",
     'if n_test >= wanted:',
     'if n_test > wanted:',
     'The test side gets one prompt more than asked for, also where test_fraction is 0.'),
    ("blind", "nanopref/data/formats.py",
     '.index(fields[0]) + 1',
     '.index(fields[1]) + 1',
     '`preferred` names the rejected response, so the position '
     'preference of a data set is reported the wrong way round.'),
    ("blind", "nanopref/run/reference.py",
     '[[e.prompt, e.responses] for e in examples]',
     '[e.responses for e in examples]',
     'The cache key leaves out the prompts: with another '
     'system message or template stale reference log-probs are reused.'),
    ("blind", "nanopref/run/dataset.py",
     '{row.key for row in rows["test"]}',
     '{row.key for row in files["test"].rows}',
     'With --system the test keys lack the system message, '
     'so prompts of the test data are not removed from training.'),
    ("blind", "nanopref/run/training.py",
     '(self.optimizer, step + 1)',
     '(self.optimizer, step)',
     '--resume repeats the step that the checkpoint already contains: one batch is trained on twice.'),
    ("blind", "nanopref/run/distributed.py",
     'return [results[i % size()][i // size()] for i in range(len(items))]',
     'return sum(results, [])',
     'With several processes results come back process by '
     'process, so log-probs, answers and rewards belong to the wrong items.'),
    ("blind", "nanopref/run/checkpoint.py",
     'not in (".json", ".jinja", ".safetensors")',
     'not in (".json", ".safetensors")',
     'An edited chat_template.jinja does not change a model '
     "folder's digest, so the run made with the old template is reused."),
    ("blind", "nanopref/run/config.py",
     '"data", "test_data", "axis"',
     '"data", "axis"',
     'The SFT stage before a run does not know --test-data, so it trains on prompts that are later tested on.'),
    ("blind", "nanopref/run/metrics.py",
     '(-joined("w", lambda s: s.logp).sum() / lengths.sum()).item()',
     '(-joined("w", lambda s: s.logp) / lengths).mean().item()',
     'nll_loss is a mean of per-response means instead of nats per chosen token.'),
    ("blind", "nanopref/judge/compare.py",
     '.pop(0))',
     '[0])',
     "A prompt asked n times is compared n times with B's first answer to it; B's other answers are lost."),
    ("blind", "nanopref/judge/measures_rm.py",
     'd_sl - r * d_sg - (a - r * b) * d_r',
     'd_sl - r * d_sg',
     'The standard error of length_beyond_gold ignores that the correlation of gold and length is itself estimated.'),
    ("blind", "nanopref/world/labels.py",
     'gold - TEMPERATURE * math.log(-math.log(rng.random()))',
     'gold + TEMPERATURE * math.log(-math.log(rng.random()))',
     'Rankings are drawn with the noise of a minimum instead '
     'of a Gumbel maximum, so they are no Plackett-Luce labels.'),
    ("blind", "nanopref/world/language.py",
     'for b in range(a, 10)])[part]',
     'for b in range(10)])[part]',
     '3 plus 4 and 4 plus 3 may fall on different sides and '
     'both sides then get both: sums of the test are in training.'),
    ("blind", "train_po.py",
     'reduce(out, n_terms, n_tokens)',
     'reduce(out, n_tokens=n_tokens)',
     'With --accumulate k, or k processes, the preference term is a sum of micro-batch means: k times too large.'),
)]


def tests_of(file: str) -> list[str]:
    """The test files that go with a file."""
    name = Path(file).stem
    files = [ROOT / "tests" / f"test_{each}.py" for each in (name, *TESTS.get(name, "").split())]
    return [f"tests/{path.name}" for path in files if path.exists()]


def is_noticed(bug: Bug, copy: Path) -> bool:
    """Whether a test fails in a copy of the project that has this bug."""
    path = copy / bug.file
    whole = path.read_text()
    path.write_text(whole.replace(bug.old, bug.new))
    try:
        done = subprocess.run([sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", *tests_of(bug.file)],
                              cwd=copy, capture_output=True, text=True, timeout=900,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
    finally:
        path.write_text(whole)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{bug.file}: {bug.what}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main() -> int:
    """Tries the bugs and prints the table; the number of survivors."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default="", metavar="TEXT", help="only bugs in files with this in their path")
    p.add_argument("--jobs", type=int, default=2, metavar="N", help="at a time (default: 2)")
    args = p.parse_args()
    bugs, copies = [bug for bug in BUGS if args.only in bug.file], SimpleQueue()
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as top:
        for job in range(args.jobs):
            copy = Path(top) / str(job)
            for name in tracked.stdout.splitlines():
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, copy / name)
            copies.put(copy)

        def one(bug):
            copy = copies.get()
            noticed = is_noticed(bug, copy)
            copies.put(copy)
            print(f"{'noticed ' if noticed else 'SURVIVES'}  {bug.kind:7} {bug.file}: {bug.what}", flush=True)
            return noticed
        with ThreadPoolExecutor(args.jobs) as pool:
            noticed = list(pool.map(one, bugs))
    print(f"{len(bugs)} bugs, {noticed.count(False)} survive")
    return noticed.count(False)


if __name__ == "__main__":
    sys.exit(bool(main()))
