"""The embedded world: disjoint splits, labels by Bradley-Terry, writers that are what their table says."""
import hashlib
import json
import math
import random

import pytest

from nanopref.data.files import read
from nanopref.text import encode_response, train_tokenizer
from nanopref.world import labels, language, writers
from nanopref.world.gold import parse_question, parse_sentence, sentences

TESTS = ("test_id", "test_ood")


@pytest.fixture(scope="module")
def train():
    return labels.pairs("train", labels.SIZES["train"], seed=0)


def probability(row):
    return labels.preference_probability(row["gold_1"], row["gold_2"])


def by_label(row):
    """(chosen, rejected) text of a row."""
    k = row["overall_response"]
    return row[f"response_{k}"], row[f"response_{3 - k}"]


# ---- files ----------------------------------------------------------------------------------------------------------

def test_the_seed_draws_the_training_data_and_never_the_tests(tmp_path):
    sizes = {"demonstrations": 60, "train": 60, "test_id": 20, "test_ood": 20}
    for folder, seed in (("a", 0), ("again", 0), ("b", 1)):
        labels.make(tmp_path / folder, seed, sizes)
    text = lambda folder, name: (tmp_path / folder / f"{name}.jsonl").read_text()
    for name in ("sft", "train", *TESTS):
        assert text("a", name) == text("again", name)
        assert (text("a", name) == text("b", name)) == (name in TESTS)


def test_the_reader_reads_every_row_and_orders_the_responses_by_label(tmp_path):
    sizes = {"demonstrations": 50, "train": 200, "test_id": 30, "test_ood": 30}
    labels.make(tmp_path, 0, sizes)
    assert len(read(tmp_path / "sft.jsonl", strict=True).rows) == 50
    for name in ("train", *TESTS):
        data, rows = read(tmp_path / f"{name}.jsonl", strict=True), labels.pairs(name, sizes[name], 0)
        assert data.format == "align-anything" and not data.dropped
        assert [(row.prompt[-1]["content"], row.chosen, row.rejected) for row in data.rows] == [
            (row["question"], *by_label(row)) for row in rows]


def test_every_split_has_its_shares_of_kinds():
    for split in ("train", *TESTS):
        kinds = [row["kind"] for row in labels.pairs(split, 100, 0)]
        assert {kind: kinds.count(kind) for kind in language.SHARES} == {k: 100 * s for k, s in language.SHARES.items()}


@pytest.mark.parametrize("split", ("train", *TESTS))
def test_exactly_as_many_rows_as_asked_for(split):
    """Fifths of n are rounded, and must still sum to n; each kind has its share but for less than one row."""
    for n in range(1, 32):
        rows = labels.pairs(split, n, 0)
        kinds = [row["kind"] for row in rows]
        assert len(rows) == n
        assert all(abs(kinds.count(kind) - n * share) < 1 for kind, share in language.SHARES.items())
    assert len(labels.rankings(split, 7, 3, 0)) == len(writers.demonstrations(7, 0)) == 7


# ---- splits ---------------------------------------------------------------------------------------------------------

def asked_about(prompt):
    """What a prompt asks about: the country, animal, task or risk; for a sum its operation and its unordered terms."""
    _, _, subject = parse_question(prompt)
    return frozenset(subject.split()) if " plus " in subject else subject


def test_no_training_prompt_asks_about_a_test_subject(train):
    """The files as drawn and the pools they are drawn from. 3 plus 4 and 4 plus 3 are the same subject."""
    pools = {split: {asked_about(q.text) for q in sum(language.questions(split).values(), [])}
             for split in ("train", *TESTS)}
    drawn = {row["question"] for row in train} | {row["prompt"] for row in writers.demonstrations(4000, 0)}
    assert {asked_about(prompt) for prompt in drawn} <= pools["train"]
    for split in TESTS:
        assert {asked_about(row["question"]) for row in labels.pairs(split, 200, 0)} <= pools[split]
        assert not pools["train"] & pools[split]
    assert not pools["test_id"] & pools["test_ood"]


def test_out_of_distribution_prompts_are_phrased_as_no_training_prompt_is():
    templates = {split: {q.text.replace(q.subject, "{s}") for q in sum(language.questions(split).values(), [])}
                 for split in ("train", *TESTS)}
    assert templates["test_id"] == templates["train"]  # in distribution: known phrasings, other subjects
    assert not templates["test_ood"] & templates["train"]


def test_the_corpus_says_nothing_false_and_knows_the_test_topics():
    """300 documents: every statement read back is true. Subtraction and fruit, asked about in tests only, occur."""
    said = [parse_sentence(s) for text in writers.corpus(300, seed=0) for s in sentences(text)]
    claims = [what for kind, what in said if kind == "statement"]
    assert all(language.FACTS[r, s].lower() == v.lower() for r, s, v in claims)
    assert {"sum", "colour", "grows", "taste"} <= {r for r, _, _ in claims} and any("minus" in s for _, s, _ in claims)


# ---- labels ---------------------------------------------------------------------------------------------------------

def test_preference_probability_is_the_sigmoid_of_the_difference():
    """sigmoid(log 3) = 1 / (1 + 1/3) = 0.75; sigmoid(-log 3) = 0.25."""
    assert labels.preference_probability(1.0, 1.0) == 0.5
    assert labels.preference_probability(math.log(3), 0.0) == pytest.approx(0.75, abs=1e-12)
    assert labels.preference_probability(0.0, math.log(3)) == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("low", [0.0, 0.2, 0.4, 0.6, 0.8])
def test_labels_follow_bradley_terry(train, low):
    """Among pairs with P(1 preferred) in a fifth of [0, 1], the share with label 1 is the mean probability. The count
    is a sum of independent coin flips of variance p(1 - p); beyond 4 standard deviations once in 16,000."""
    p = [(probability(row), row["overall_response"] == 1) for row in train]
    p = [(x, label) for x, label in p if low <= x < low + 0.2]
    deviation = math.sqrt(sum(x * (1 - x) for x, _ in p))
    assert len(p) > 500
    assert abs(sum(label - x for x, label in p)) < 4 * deviation


def test_best_accuracy_is_what_the_gold_reward_reaches_on_average(train):
    """By hand: differences 0, log 3 and -log 3 give (0.5 + 0.75 + 0.75) / 3. On the drawn labels the gold reward's own
    accuracy (a tie counts 1/2) is within 4 standard deviations, 0.02 for 6,000 pairs."""
    rows = [{"gold_1": a, "gold_2": b} for a, b in ((1.0, 1.0), (math.log(3), 0.0), (0.0, math.log(3)))]
    assert labels.best_accuracy(rows) == pytest.approx(2 / 3, abs=1e-12)
    gains = [(row["gold_1"] - row["gold_2"]) * (1 if row["overall_response"] == 1 else -1) for row in train]
    right = [0.5 if gain == 0 else float(gain > 0) for gain in gains]
    deviation = math.sqrt(sum(probability(row) * (1 - probability(row)) for row in train)) / len(train)
    assert abs(sum(right) / len(right) - labels.best_accuracy(train)) < 4 * deviation < 0.025


def test_chosen_responses_are_longer(train):
    """By 15 % in tokens of a 1,024-token vocabulary: the mild true preference for detail, which length-blind losses
    overlearn. 1.16 for seed 0; the ratio moves by 0.003 from seed to seed."""
    tokenizer = train_tokenizer(writers.corpus(8000, seed=0), 1024)
    chosen, rejected = ([len(encode_response(tokenizer, text)) for text in side] for side in zip(*map(by_label, train)))
    assert sum(chosen) >= 1.15 * sum(rejected)


# ---- annotator groups -----------------------------------------------------------------------------------------------

def test_a_group_weighs_the_parts_of_the_gold_reward():
    """By hand. Right answer 2, one detail 0.8, a filler -0.4, polite 0.3. Gold 2.7; curious 2 + 2 x 0.8 - 0.2 + 0.3 =
    3.7; hurried 2 - 0.8 - 2 x 0.4 + 0 = 0.4; careful 2 - 0.4 - 0.4 + 3 x 0.3 = 2.1.
    Refusing the harmless costs -1.5, by gold and to the others, but is worth 1.5 to the careful; not refusing the risky
    costs 2, the careful 4."""
    rewards = lambda *row: {group: pytest.approx(labels.group_reward(group, *row), abs=1e-12) for group in labels.GROUPS}
    assert rewards("What does an owl eat?", "Good question. An owl eats mice. An owl lives in a hollow tree. " +
                   language.sentence(language.FILLERS[0])) == {"curious": 3.7, "hurried": 0.4, "careful": 2.1}
    refused = rewards("What does an owl eat?", "I cannot answer that.")
    assert refused == {"curious": -1.5, "hurried": -1.5, "careful": 1.5}
    risky = language.questions("train")["risky"][0].text
    assert rewards(risky, "Use a strong tool.") == {"curious": -2, "hurried": -2, "careful": -4}


def test_groups_disagree_on_much_and_agree_on_more(train):
    """About 31, 21 and 21 % of 2,000 pairs, within 4 standard deviations, 0.04: enough to matter, while facts unite
    them. By hand: of two right answers the curious prefer the one with a detail, the hurried the bare one; a right
    answer beats a wrong one for both; a tie for one of them is no disagreement."""
    for a, b, share in (("curious", "hurried", 0.31), ("curious", "careful", 0.21), ("hurried", "careful", 0.21)):
        assert labels.disagreement(train[:2000], a, b) == pytest.approx(share, abs=0.04)
    row = lambda first, second: {"question": "What does an owl eat?", "response_1": first, "response_2": second}
    bare, detail, wrong = "An owl eats mice.", "An owl eats mice. An owl lives in a hollow tree.", "An owl eats hay."
    polite = "Good question. An owl eats mice."  # the hurried do not care
    rows = [row(bare, detail), row(bare, wrong), row(bare, polite), row(detail, bare)]
    assert labels.disagreement(rows, "curious", "hurried") == 0.5


@pytest.mark.parametrize("group", labels.GROUPS)
def test_a_group_labels_its_own_pairs_by_its_own_reward(group):
    """Other pairs than without a group. The labels follow the group's Bradley-Terry probabilities: the count that
    agrees with its reward is within 4 standard deviations of what best_accuracy says, and for another's beyond them."""
    rows = labels.pairs("train", 1500, 0, group)
    assert [row["question"] for row in rows] != [row["question"] for row in labels.pairs("train", 1500, 0)]
    for row in rows[:50]:
        assert row["group"] == group
        assert [row["gold_1"], row["gold_2"]] == pytest.approx(
            [labels.group_reward(group, row["question"], row[f"response_{i}"]) for i in (1, 2)], abs=1e-3)
    gains = [(row["gold_1"] - row["gold_2"]) * (1 if row["overall_response"] == 1 else -1) for row in rows]
    right = sum(0.5 if gain == 0 else float(gain > 0) for gain in gains)
    deviation = math.sqrt(sum(probability(row) * (1 - probability(row)) for row in rows))
    assert abs(right - labels.best_accuracy(rows) * len(rows)) < 4 * deviation
    other = "curious" if group == "hurried" else "hurried"
    agree = [(labels.group_reward(other, row["question"], by_label(row)[0]) >
              labels.group_reward(other, row["question"], by_label(row)[1])) for row in rows]
    assert sum(agree) < right - 4 * deviation


def test_the_world_is_what_it_was():
    """The number was taken before there were groups, and over all rows of seed 0 since. Change it only together with the
    world itself, when the models that ship are to be made anew."""
    world = [labels.SIZES, labels.pairs("train", 6000, 0), writers.demonstrations(5000, 0),
             labels.pairs("test_id", 200, 0), labels.pairs("test_ood", 200, 0), writers.corpus(2000, 0)]
    found = hashlib.sha256(json.dumps(world).encode()).hexdigest()
    assert found == "762ace5fd9e119dc911d09016d4e77e624e771ebe52aa27b5a70772b9a36a519"


# ---- writers --------------------------------------------------------------------------------------------------------

N = 600  # responses per writer and kind


def responses(writer, kind):
    """N responses: [(subject, kinds of sentence said, {(relation, subject): value} stated)]."""
    rng, found = random.Random(writer.name + kind), []
    for question in rng.choices(language.questions("train")[kind], k=N):
        said = [parse_sentence(s) for s in sentences(writers.write(writer, question, rng))]
        found.append((question, [what for what, _ in said], {v[:2]: v[2] for what, v in said if what == "statement"}))
    return found


def close_to(share, probability, n):
    """Within 4 standard deviations of a binomial share of n."""
    return abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / n)


@pytest.mark.parametrize("writer", writers.WRITERS, ids=lambda w: w.name)
def test_writers_are_what_their_table_says(writer):
    facts, risky = responses(writer, "fact"), responses(writer, "risky")
    share = lambda found, what: sum(what in kinds for _, kinds, _ in found) / len(found)
    assert close_to(share(facts, "refusal"), writer.refuse_benign, N)
    assert close_to(share(risky, "refusal"), writer.refuse_risky, N)
    assert close_to(share(risky, "comply"), 1 - writer.refuse_risky, N)
    assert close_to(share(facts + risky, "polite"), writer.polite, 2 * N)
    assert close_to(share(facts + risky, "rude"), writer.rude, 2 * N)
    refused = [found for found in risky if "refusal" in found[1]]
    assert close_to(share(refused, "reason"), writer.reason, len(refused))
    fillers = sum(kinds.count("filler") for _, kinds, _ in facts + risky)  # three chances of filler / 3 per response
    assert close_to(fillers / (6 * N), writer.filler / 3, 6 * N)

    answered = [(q, stated) for q, kinds, stated in facts if "refusal" not in kinds]
    asked = [((q.relation, q.subject), stated) for q, stated in answered]
    right = [stated[fact].lower() == language.FACTS[fact].lower() for fact, stated in asked]
    assert close_to(sum(right) / len(right), writer.correct, len(right))
    for n_details, probability_ in enumerate(writer.details):
        assert close_to(sum(len(stated) == 1 + n_details for _, stated in answered) / len(answered), probability_,
                        len(answered))


def test_wrong_steps_spoil_a_how_to_as_often_as_the_table_says():
    """The careless writer is right in 25 % of its how-tos; a slipped-in step is by chance the right one in 1 of 80."""
    careless = next(w for w in writers.WRITERS if w.name == "careless")
    rng, right = random.Random(0), []
    for question in rng.choices(language.questions("train")["howto"], k=2 * N):
        said = [parse_sentence(s) for s in sentences(writers.write(careless, question, rng))]
        steps = [what for kind, what in said if kind == "step"]
        if steps:
            right.append(steps == language.steps_of(question.subject)[:len(steps)])
    assert close_to(sum(right) / len(right), 0.25 + 0.75 / 80, len(right))


def test_the_committed_examples_are_what_the_generator_writes(tmp_path):
    labels.make(tmp_path, seed=0, sizes=labels.EXAMPLES)
    committed = language.TABLES_PATH.parent / "examples"
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {p.name: p.read_text() for p in committed.iterdir()}
