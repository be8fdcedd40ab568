"""Who writes in the embedded world: five writers of uneven quality, SFT's demonstrations and the base model's corpus."""
import random
from dataclasses import dataclass

from nanopref.world.language import (ALTERNATIVE, COMPLIES, FACTS, FILLERS, NO_ANSWER, ORDINALS, POLITE, REASONS,
                                     REFUSALS, RUDE, SHARES, STATEMENTS, TABLES, WRAPPERS, Question, questions, refusal,
                                     related, risk_of, sentence, steps_of)


# ---------------------------------------------------------------------------------------------------------------------
# 3. Writers: quality attributes that vary apart. Every number is a probability, `filler` a mean count.
@dataclass(frozen=True)
class Writer:
    """How often a writer gets each attribute right; see `write` for what each does to a text."""
    name: str
    share: float             # of all responses
    correct: float           # the answer (and each detail) is right
    details: tuple           # probabilities of 0, 1, 2 further details
    refuse_risky: float      # refuses what should be refused
    reason: float            # a refusal says why
    refuse_benign: float     # refuses what should be answered
    filler: float            # sentences that say nothing
    polite: float
    rude: float
WRITERS = (
    #       name            share correct details          risky reason benign filler polite rude
    Writer("terse",          0.30, 0.90, (0.90, 0.10, 0.00), 0.80, 0.15, 0.05, 0.00, 0.00, 0.10),
    Writer("plain",          0.15, 0.98, (0.02, 0.18, 0.80), 0.98, 0.97, 0.00, 0.05, 0.60, 0.00),
    Writer("verbose",        0.20, 0.85, (0.15, 0.35, 0.50), 0.80, 0.60, 0.02, 0.90, 0.60, 0.00),
    Writer("careless",       0.20, 0.25, (0.60, 0.30, 0.10), 0.25, 0.30, 0.10, 0.15, 0.05, 0.40),
    Writer("over-cautious",  0.15, 0.85, (0.60, 0.30, 0.10), 1.00, 0.80, 0.60, 0.20, 0.40, 0.00),
)


def _state(relation, subject, right, rng):
    value = FACTS[relation, subject]
    if not right:
        others = sorted({v for (r, s), v in FACTS.items() if r == relation and v != value
                         and (r != "sum" or abs(int(v) - int(value)) <= 3)})
        value = rng.choice(others)
    return sentence(rng.choice(STATEMENTS[relation]), subject, value)


def write(writer: Writer, question: Question, rng: random.Random) -> str:
    """One response by `writer` to `question`."""
    kind, n_details = question.kind, rng.choices((0, 1, 2), writer.details)[0]
    right = rng.random() < writer.correct
    said = []
    if rng.random() < (writer.refuse_risky if kind == "risky" else writer.refuse_benign):
        to_do = question.relation == "task"
        said.append(refusal(question.subject, rng.choice(REFUSALS)) if to_do else sentence(NO_ANSWER))
        reason, instead = risk_of(question.subject) or (rng.choice(sorted(REASONS)), None)
        if rng.random() < writer.reason:
            said.append(sentence(REASONS[reason if right else rng.choice(sorted(REASONS))]))
            if instead and n_details:
                said.append(sentence(ALTERNATIVE, instead))
    elif kind == "risky":
        said += [sentence(s) for s in rng.sample(COMPLIES, 1 + n_details)]
    elif kind == "howto":
        steps = list(steps_of(question.subject))[:2 + n_details]
        if not right:  # a step of some other task slips in
            steps[rng.randrange(len(steps))] = rng.choice(steps_of(rng.choice(sorted(TABLES["howto"]))))
        last = len(steps) - 1
        said += [sentence(f"{ORDINALS[3 if i == last else i]}, {step}.") for i, step in enumerate(steps)]
    else:
        details = rng.sample(related(question.relation, question.subject), n_details)
        said.append(_state(question.relation, question.subject, right, rng))
        said += [_state(*fact, rng.random() < (1 + writer.correct) / 2, rng) for fact in details]
    manner = rng.random()
    if manner < writer.polite:
        said.insert(0, sentence(rng.choice(POLITE)))
    elif manner < writer.polite + writer.rude:
        said.insert(rng.choice((0, len(said))), sentence(rng.choice(RUDE)))
    n_filler = sum(rng.random() < writer.filler / 3 for _ in range(3))
    said += [sentence(s) for s in rng.sample(FILLERS, n_filler)]
    return " ".join(said)


def draw(pool: dict[str, list[Question]], n: int, rng: random.Random) -> list[Question]:
    """n questions in the SHARES of their kinds, each kind without repeats until its pool is used up."""
    drawn, upto = [], 0.0
    for kind, share in SHARES.items():
        upto += share
        count = round(n * upto) - len(drawn)  # rounded so that the counts sum to n
        times = -(-count // len(pool[kind]))
        drawn += [q for _ in range(times) for q in rng.sample(pool[kind], len(pool[kind]))][:count]
    rng.shuffle(drawn)
    return drawn


def demonstrations(n: int, seed: int) -> list[dict]:
    """n rows {prompt, completion} by the unfiltered mixture of writers: what SFT learns from."""
    rng = random.Random(f"sft-{seed}")
    return [{"prompt": q.text, "completion": write(rng.choices(WRITERS, [w.share for w in WRITERS])[0], q, rng)}
            for q in draw(questions("train"), n, rng)]


def corpus(n: int, seed: int) -> list[str]:
    """n short documents of base-corpus text about everything in the world, the test topics included. All of it true:
    what a base model should know. No chat turns; questions occur only inside running text."""
    rng = random.Random(f"corpus-{seed}")
    asked = [q for split in ("train", "test_id", "test_ood") for q in sum(questions(split).values(), [])]
    facts = list(FACTS)
    tasks = [*TABLES["howto"], *TABLES["howto_ood"]]

    def about(q):
        """The true answer to q, as sentences: a fact with some details, the steps, or a refusal with its reason."""
        if q.kind == "risky":
            reason, instead = risk_of(q.subject)
            return [refusal(q.subject, rng.choice(REFUSALS)), sentence(REASONS[reason]), sentence(ALTERNATIVE, instead)]
        if q.kind == "howto":
            return how_to(q.subject)
        details = rng.sample(related(q.relation, q.subject), rng.randrange(3))
        return [_state(*fact, True, rng) for fact in [(q.relation, q.subject), *details]]

    def how_to(task):
        steps = steps_of(task)[:rng.choice((2, 3, 4, 4))]
        return [sentence(f"{ORDINALS[3 if i == len(steps) - 1 else i]}, {s}.") for i, s in enumerate(steps)]

    def document():
        """Questions with their answers, or a few facts, or the steps of a task."""
        dice = rng.random()
        if dice < 0.6:
            said = []
            for q in rng.choices(asked, k=rng.choice((1, 1, 2))):
                answer = about(q)
                if rng.random() < 0.2:  # it has met these too, before and after an answer
                    aside = rng.choice(FILLERS + POLITE + RUDE + COMPLIES + (NO_ANSWER,))
                    answer.insert(rng.choice((0, len(answer))), sentence(aside))
                said.append(rng.choice(WRAPPERS).format(q=q.text, a=" ".join(answer)))
            return "\n".join(said)
        if dice < 0.85:
            return " ".join(_state(*fact, True, rng) for fact in rng.choices(facts, k=3))
        task = rng.choice(tasks)
        return " ".join([f"To {task}, do this.", *how_to(task)])

    return [document() for _ in range(n)]
