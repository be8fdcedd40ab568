"""The public shapes of preference data: from one JSON object to a chosen and a rejected conversation.

A format is a line in FORMATS: the fields that tell it from the others, and a converter. A prompt is never guessed from
the characters that two strings share: two answers that start alike would lose their start to the prompt.
"""
import dataclasses
import re
import sys
from dataclasses import dataclass
from functools import partial

from nanopref.errors import UserError, shown

HH_START = "\n\nHuman:"
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names; every other role keeps its own


@dataclass(frozen=True)
class Turn:
    """One message while its row is checked; `field` of the row is where it came from and no part of what it says."""
    role: str
    content: str
    field: str = dataclasses.field(compare=False)


class BadRow(Exception):
    def __init__(self, reason, field, expected):
        super().__init__(f"field {field}: {reason}; expected {expected}")
        self.reason = reason


def kind(value):
    if isinstance(value, str):
        return "transcript" if value.startswith(HH_START) else "string"
    return {list: "list", dict: "object", type(None): "null"}.get(type(value), type(value).__name__)


def detect(row):
    """The first of FORMATS that the row has the fields of, or None."""
    kind_of_chosen = kind(row.get("chosen"))
    for name, (fields, _) in FORMATS.items():
        if all(field in row for field in fields) and KIND_OF_CHOSEN.get(name, kind_of_chosen) == kind_of_chosen:
            return name
    return None


def converter(row, row_format, axis, where):
    """The converter of a format, with the axis it needs. UserError for row_format None, unknown, and for an axis that
    is missing or has no use."""
    if row_format is None:
        fields = ", ".join(f"{shown(field, 30)} ({kind(row[field])})" for field in sorted(row)[:4]) or "(none)"
        more = f" and {len(row) - 4} more" if len(row) > 4 else ""
        raise UserError(f"{where}: unknown format with fields {fields}{more}. Rename them to prompt, chosen, "
                        "rejected (all strings), or to those of another format in nanopref/data/README.md")
    if row_format != "pku-saferlhf":
        if axis is not None:
            raise UserError(f"{where}: --axis {axis} is for PKU-SafeRLHF data, and this is {row_format}. Leave it out")
        return FORMATS[row_format][1]
    if axis not in ("better", "safer"):
        raise UserError(f"{where}: PKU-SafeRLHF ranks by helpfulness and by safety, and the two disagree on many rows. "
                        "Pass --axis better or --axis safer")
    return partial(FORMATS[row_format][1], axis=axis)


def parse(row, known_format, convert):
    """The fields of a Row but for its line: prompt messages, chosen text or None, rejected text or None, and what the
    row says besides; raises BadRow."""
    fields = FORMATS[known_format][0]
    for field in fields:
        if field not in row:
            raise BadRow("missing field", field, f"fields {', '.join(fields)}")
    chosen, rejected = convert(row)
    label = fields[-1]
    if label in ("label", "kto_tag"):  # an unpaired row is read like a demonstration
        if not isinstance(row[label], bool):
            raise BadRow("label out of range", label, f"true or false, not {_json(row[label])}")
        chosen, rejected = (chosen, None) if row[label] else (None, chosen)
    if chosen and rejected and chosen[:-1] != rejected[:-1]:
        raise BadRow("different prefixes", rejected[-1].field, "the same messages on both sides up to the last one")
    sides = [side for side in (chosen, rejected) if side]
    for side in sides:
        _check_conversation(side)
    # A response is stripped: the chat layout already marks where it starts and ends, so the space of "Assistant: text"
    # is no part of the answer, and a stray newline on one side only would be learned as the preference.
    texts = [side[-1].content.strip() if side else None for side in (chosen, rejected)]
    if texts[0] == texts[1]:
        raise BadRow("identical", rejected[-1].field, f"a text other than that of {chosen[-1].field}")
    prompt = tuple({"role": turn.role, "content": turn.content} for turn in sides[0][:-1])
    besides = _aside(row, known_format, chosen, rejected) if chosen and rejected else {}
    return {"prompt": prompt, "chosen": texts[0], "rejected": texts[1], **besides}


def _aside(row, known_format, chosen, rejected):
    """What a pair says besides, as fields of Row: `between`, `scores`, `preferred`, `group`; what is absent
    or no number (no name) is left out: only --margin and --heads need it, and they say so."""
    aside = {}
    if known_format == "ranking":
        aside["between"] = tuple(text.strip() for text in row["ranked"][1:-1])
    fields = [chosen[-1].field, rejected[-1].field]
    if known_format in ORDERED:
        aside["preferred"] = ORDERED[known_format].index(fields[0]) + 1
    names = SCORES.get(known_format, {"chosen": "score_chosen", "rejected": "score_rejected"})
    scores = row.get("scores") if known_format == "ranking" else [row.get(names.get(field)) for field in fields]
    if isinstance(scores, list) and None in scores:  # null is the same as absent
        scores = None
    if scores is not None:
        n = 2 + len(aside.get("between", ()))
        if isinstance(scores, list) and len(scores) == n and all(map(_is_finite, scores)):
            aside["scores"] = tuple(map(float, scores))
    if isinstance(row.get("group"), str) and row["group"].strip():
        aside["group"] = row["group"]
    return aside


def _is_finite(value):
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # an integer may be larger than any float


def _json(value):
    """A label as its file has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shown(value, 40)


def _check_conversation(turns):
    """Raises BadRow unless `turns` is a prompt that says something and an assistant's answer that says something."""
    roles = [turn.role for turn in turns]
    if "user" not in roles:
        raise BadRow("empty prompt", turns[-1].field, "at least one user message before the answer")
    if roles[0] == "system":
        roles = roles[1:]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        found = ", ".join(role if role in ("system", "user", "assistant") else shown(role, 20) for role in roles[:4])
        raise BadRow("roles do not alternate", turns[-1].field, "user and assistant in turn after an optional system "
                     f"message, ending with assistant; found {found}{', ...' if len(roles) > 4 else ''}")
    for turn, reason in ((turns[-2], "empty prompt"), (turns[-1], "empty response")):
        if not turn.content.strip():
            raise BadRow(reason, turn.field, "text that is not blank")


def _turns(row, field, role="user"):
    """The field's messages: a string is one of `role`; in a list they are spelt role and content, or from and value."""
    value = row[field]
    if isinstance(value, str):
        return [Turn(role, value, field)]
    if value == []:
        raise BadRow("empty response" if role == "assistant" else "empty prompt", field, "at least one message")
    turns = []
    for message in value if isinstance(value, list) else [value]:
        message = message if isinstance(message, dict) else {}
        speaker, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not (isinstance(speaker, str) and isinstance(content, str)):
            raise BadRow("wrong type", field, 'a string or a list of {"role": string, "content": string}')
        turns.append(Turn(ROLES.get(speaker, speaker), content, field))
    return turns


def _text(row, field):
    """An optional string; null is the same as absent."""
    value = row.get(field)
    if not isinstance(value, str | None):
        raise BadRow("wrong type", field, "a string")
    return value or ""


def _prompt(row, field):
    """The optional system message, then the field's messages."""
    return ([Turn("system", row["system"], "system")] if _text(row, "system") else []) + _turns(row, field)


def _answered(prompt, row, field):
    """The conversation of one side. Some files repeat the prompt at the start of an answer given as messages."""
    answer = _turns(row, field, "assistant")
    is_whole = answer[0].role != "assistant" and set(prompt) <= set(answer)
    return answer if is_whole else prompt + answer


def _pair(prompt, row):
    return _answered(prompt, row, "chosen"), _answered(prompt, row, "rejected")


def _ranked(row, prompt_field, label, responses):
    """`responses` maps each value of `label` to the field it prefers."""
    if type(row[label]) is not int or row[label] not in responses:  # type: true == 1 in Python
        raise BadRow("label out of range", label, f"{' or '.join(map(str, responses))} for the better response, "
                     f"not {_json(row[label])}")
    chosen = responses[row[label]]
    rejected, = set(responses.values()) - {chosen}
    prompt = _prompt(row, prompt_field)
    return _answered(prompt, row, chosen), _answered(prompt, row, rejected)


def _ranking(row):
    texts = row["ranked"]
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise BadRow("wrong type", "ranked", "a list of two or more strings, the best response first")
    texts = [text.strip() for text in texts]
    if "" in texts:
        raise BadRow("empty response", "ranked", "text that is not blank")
    if len(set(texts)) < len(texts):
        raise BadRow("identical", "ranked", "texts that all differ")
    prompt = _prompt(row, "prompt")
    return [*prompt, Turn("assistant", texts[0], "ranked")], [*prompt, Turn("assistant", texts[-1], "ranked")]


def _ultrafeedback(row):
    if row["score_chosen"] == row["score_rejected"]:
        raise BadRow("tie", "score_rejected", "a score other than score_chosen")
    return _turns(row, "chosen"), _turns(row, "rejected")  # whole conversations


def _transcript(row, field):
    before, *parts = re.split(r"\n\n(Human|Assistant):", _text(row, field))
    if before or not parts:
        raise BadRow("roles do not alternate" if before else "empty prompt", field,
                     f"a transcript that starts with {HH_START!r}")
    role = {"Human": "user", "Assistant": "assistant"}
    return [Turn(role[name], text.strip(), field) for name, text in zip(parts[::2], parts[1::2])]


def _alpaca(row):
    """The prompt: system and history if any, then the instruction and, on the next line, its input if any."""
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
            isinstance(pair, list) and [type(text) for text in pair] == [str, str] for pair in history):
        raise BadRow("wrong type", "history", "a list of [user, assistant] pairs of strings")
    past = [Turn(role, text, "history") for pair in history for role, text in zip(("user", "assistant"), pair)]
    asked = "\n".join(filter(None, [_text(row, "instruction"), _text(row, "input")]))
    *system, question = _prompt({**row, "instruction": asked}, "instruction")
    return [*system, *past, question]


def _swift(row):
    chosen = _turns(row, "messages")  # the last message is the chosen answer
    return chosen, chosen[:-1] + _turns(row, "rejected_response", "assistant")


def _completed(row):
    return _answered(_prompt(row, "prompt"), row, "completion"), None


def _alpaca_completed(row):
    return _answered(_alpaca(row), row, "output"), None


# Format -> the fields every row must have, and the converter to (chosen, rejected): lists of Turn, or None. In the
# order of detection: a format with more fields comes before those that have some of them.
FORMATS = {
    "align-anything": (
        ("question", "response_1", "response_2", "overall_response"),
        lambda row: _ranked(row, "question", "overall_response", {1: "response_1", 2: "response_2"})),
    "pku-saferlhf": (
        ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"),
        lambda row, axis: _ranked(row, "prompt", f"{axis}_response_id", {0: "response_0", 1: "response_1"})),
    "ranking": (("prompt", "ranked"), _ranking),
    "ultrafeedback": (("prompt", "chosen", "rejected", "score_chosen", "score_rejected"), _ultrafeedback),
    "sharegpt": (("conversations", "chosen", "rejected"), lambda row: _pair(_prompt(row, "conversations"), row)),
    "alpaca": (("instruction", "chosen", "rejected"), lambda row: _pair(_alpaca(row), row)),
    "question-pairs": (("question", "chosen", "rejected"), lambda row: _pair(_prompt(row, "question"), row)),
    "hh-rlhf": (("chosen", "rejected"), lambda row: (_transcript(row, "chosen"), _transcript(row, "rejected"))),
    "messages": (("chosen", "rejected"), lambda row: _pair(_prompt(row, "prompt") if "prompt" in row else [], row)),
    "pairs": (("prompt", "chosen", "rejected"), lambda row: _pair(_prompt(row, "prompt"), row)),
    "ms-swift": (("messages", "rejected_response"), _swift),
    "ms-swift-lists": (
        ("messages", "rejected_messages"),
        lambda row: (_turns(row, "messages"), _turns(row, "rejected_messages"))),
    # Unpaired, for KTO. The label is the last field: true makes the answer the chosen one, false the rejected one.
    "unpaired": (("prompt", "completion", "label"), _completed),
    "alpaca-unpaired": (("instruction", "output", "kto_tag"), _alpaca_completed),
    "sharegpt-unpaired": (("conversations", "kto_tag"), lambda row: (_prompt(row, "conversations"), None)),
    "ms-swift-unpaired": (("messages", "label"), lambda row: (_turns(row, "messages"), None)),
    # Demonstrations, for SFT: an answer that is chosen, and none that is rejected.
    "demonstrations": (("prompt", "completion"), _completed),
    "alpaca-demonstrations": (("instruction", "output"), _alpaca_completed),
    "sharegpt-demonstrations": (("conversations",), lambda row: (_prompt(row, "conversations"), None)),
    "ms-swift-demonstrations": (("messages",), lambda row: (_turns(row, "messages"), None)),
}
# The responses in the file's own order, by which a preference for the first can be seen; the fields of their scores.
ORDERED = {"align-anything": ("response_1", "response_2"), "pku-saferlhf": ("response_0", "response_1")}
SCORES = {"align-anything": {"response_1": "gold_1", "response_2": "gold_2"}, "pku-saferlhf": {}}
# What `chosen` must be where the fields alone do not tell; a transcript is a string that starts with HH_START.
KIND_OF_CHOSEN = {"ultrafeedback": "list", "hh-rlhf": "transcript", "messages": "list", "pairs": "string"}
