"""Text to token ids and back: a tokenizer, and the chat template that lays out its conversations.

    <|im_start|>user\\n2+2?<|im_end|>\\n<|im_start|>assistant\\n          prompt: ends with the generation header
    4<|im_end|>                                                       response: ends with exactly one end-of-turn token

The template is the model folder's own (Jinja, as every Hugging Face folder has one); above is ChatML, which models
trained here use. Prompt and response are tokenised apart and joined as ids. So the first response position is
len(prompt_ids), whatever the texts are; tokenising the joined text lets BPE merge across the boundary and moves it.
There is no padding and no mask here: masks are made from these lengths.
"""
import json
import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nanopref.errors import UserError
from nanopref.sandbox import bounded, read_template

PAD, BOS, IM_START, IM_END = SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (  # ChatML
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPLIT = "\ufdd0"  # Unicode keeps this code point out of all text: it breaks up a special token that a text spells out
QUESTION, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


class ChatTokenizer:
    """A `tokenizers.Tokenizer` and the chat template that goes with it.

    eos_id         what the template puts right after an answer: the last token of a response, and where sampling stops
    bos_id         of plain text, or None; starts every prompt if `wants_bos`
    pad_id         differs from eos_id, so that "the last token that is not padding" is the end of the response
                   (unless there is no other special token)
    header_length  tokens of the generation header, with which every prompt ends
    """

    def __init__(self, tokenizer, described):
        """described: the content of tokenizer_config.json, "chat_template" included. UserError for a template that
        cannot be rendered, or does not put an answer between the generation header and an end-of-turn token."""
        self.tokenizer, self.described = tokenizer, described
        tokenizer.encode_special_tokens = True  # a literal "<|im_end|>" is characters: nobody ends a turn from a text
        tokenizer.no_truncation()  # what to cut is decided here, and counted
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder().values()
        self.special_tokens = [token.content for token in added if token.special]
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.template = read_template(described["chat_template"])
        self.bos_id = self._find_bos()
        self.wants_bos = self._starts_with_bos()
        prompt = encode_prompt(self, [QUESTION])
        self.eos_id = self._find_eos(prompt)
        self.header_length = len(prompt) - len(self.with_bos(self.ids_of(self.render([QUESTION], False))))
        self.pad_id = self._find_pad(prompt)

    def _find_bos(self):
        """What the tokenizer itself puts before every text, else what tokenizer_config.json names, or None."""
        first, plain = (self.tokenizer.encode("4", add_special_tokens=adds).ids[:1] for adds in (True, False))
        return first[0] if first != plain else self._named("bos_token")

    def _starts_with_bos(self):
        """Whether a prompt starts with BOS: the tokenizer puts it there, or the template does."""
        if self.tokenizer.encode("4").ids[:1] == [self.bos_id]:
            return True
        prompt = self.ids_of(self.render([QUESTION], True))
        return prompt[:1] == [self.bos_id] and self.bos_id not in prompt[1:]  # SmolLM2's is <|im_start|>, which recurs

    def _find_eos(self, prompt):
        """The special token that the template puts right after an answer. UserError if there is none, or the answer
        does not stand right after the generation header: then its turns cannot be taken apart."""
        start = prompt + self.ids_of(ANSWER["content"])
        whole = self.with_bos(self.ids_of(self.render([QUESTION, ANSWER], False)))
        rest = whole[len(start):]
        if whole[:len(start)] != start or not rest or self.tokenizer.id_to_token(rest[0]) not in self.special_tokens:
            raise UserError("the chat template does not put an answer right after its generation header and a special "
                            "token right after the answer: its turns cannot be taken apart")
        return rest[0]

    def _find_pad(self, prompt):
        """The token that tokenizer_config.json names, unless it is EOS: then a special token that no prompt has."""
        pad = self._named("pad_token")
        if pad not in (None, self.eos_id):
            return pad
        others = [i for i in map(self.tokenizer.token_to_id, self.special_tokens) if i != self.eos_id]
        return min(others, key=lambda i: (i in prompt or i == self.bos_id, i), default=self.eos_id)

    @property
    def ids(self):
        """The three ids under config.json's names."""
        return {"bos_token_id": self.bos_id, "eos_token_id": self.eos_id, "pad_token_id": self.pad_id}

    @property
    def vocab_size(self):
        """How many tokens there are, added ones included."""
        return self.tokenizer.get_vocab_size()

    @property
    def largest_id(self):
        """The embedding needs more rows than this."""
        return max(self.tokenizer.get_vocab().values())

    def _named(self, name):
        """The id of a token that tokenizer_config.json names, as a string or an object with a `content`."""
        token = self.described.get(name)
        return self.tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None

    def _tokens(self, **ids):
        """The texts of these ids under their names, None left out."""
        return {name: self.tokenizer.id_to_token(i) for name, i in ids.items() if i is not None}

    def render(self, messages, add_generation_prompt):
        """The template's text, in which no special token comes from a message: where one spells it, SPLIT stands in."""
        safe = [{**message, "content": self.special.sub(lambda m: SPLIT.join(m[0]), message["content"])}
                for message in messages]
        try:  # no date: the template's own fixed one, so that the same data gives the same ids tomorrow
            with bounded():
                return self.template.render(messages=safe, add_generation_prompt=add_generation_prompt,
                                            tools=None, documents=None,  # as transformers has it: defined, but None
                                            **self._tokens(bos_token=self.bos_id, eos_token=self._named("eos_token")))
        except MemoryError:
            raise UserError("the chat template wants more than a gigabyte of memory: use another model's") from None
        except Exception as error:  # a template is a program: 1 + "a" in it is a TypeError
            raise UserError(f"the chat template refuses these messages ({', '.join(m['role'] for m in messages)}): "
                            + " ".join(str(error).split())) from None

    def ids_of(self, text):
        """Ids of a rendered text: special tokens as such, all between them as ordinary text."""
        ids, at = [], 0
        for match in [*self.special.finditer(text), None]:
            piece = text[at:match.start() if match else None].replace(SPLIT, "")
            ids += self.tokenizer.encode(piece, add_special_tokens=False).ids if piece else []
            if match:
                ids.append(self.tokenizer.token_to_id(match[0]))
                at = match.end()
        return ids

    def with_bos(self, ids):
        """`ids` with exactly one BOS in front if the tokenizer wants one, whether or not the template wrote it."""
        return [self.bos_id] + ids if self.wants_bos and ids[:1] != [self.bos_id] else ids

    def save(self, folder):
        """Writes tokenizer.json and tokenizer_config.json, the template included, into an existing folder."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        tokens = self._tokens(bos_token=self.bos_id, eos_token=self.eos_id, pad_token=self.pad_id)
        (folder / "tokenizer_config.json").write_text(json.dumps({**self.described, **tokens}, indent=2) + "\n")

    def shown(self, ids):
        """`ids` as text, special tokens included, in one line."""
        return repr(self.tokenizer.decode(ids, skip_special_tokens=False))


def train_tokenizer(texts, vocab_size) -> ChatTokenizer:
    """Byte-level BPE learned from `texts` (iterable of str), with ChatML turns; the same texts give the same tokenizer.

    Ids 0..3 are SPECIAL_TOKENS, then the 256 bytes, then merges: any string can be encoded. The vocabulary is smaller
    than `vocab_size` when the texts have too few different pairs to merge. Raises UserError below 260.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < smallest:
        raise UserError(f"vocab_size is {vocab_size}: at least {smallest} are needed, "
                        f"{len(SPECIAL_TOKENS)} special tokens and {len(alphabet)} bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),  # one token per digit: sums are learnable digit by digit
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS),
                                  initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return ChatTokenizer(tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE,
                                     "bos_token": BOS, "eos_token": IM_END, "pad_token": PAD})


def encode_prompt(tokenizer, messages):
    """Ids of a conversation, ending with the generation header; [BOS] when `messages` is empty (plain text follows).

    messages: list of {"role": "system" | "user" | "assistant", "content": str}. UserError if the template refuses them.
    """
    if not messages:
        return [tokenizer.bos_id]
    return tokenizer.with_bos(tokenizer.ids_of(tokenizer.render(messages, add_generation_prompt=True)))


def encode_response(tokenizer, text):
    """Ids of a response, ending with exactly one end-of-turn token: stopping is part of what is learned and scored."""
    return tokenizer.tokenizer.encode(text, add_special_tokens=False).ids + [tokenizer.eos_id]


def decode(tokenizer, ids):
    """Text of `ids`, special tokens left out; bytes that are not whole UTF-8 characters become U+FFFD."""
    return tokenizer.tokenizer.decode(ids, skip_special_tokens=True)


def truncate(tokenizer, prompt_ids, responses, max_len):
    """Fits prompt + each response into `max_len` tokens: (prompt_ids, responses, n_prompt_cut, n_responses_cut).

    All `responses` (list of id lists) keep one common prompt: a preference is between answers to the same x. The prompt
    is cut first, from the left, as far as the longest response needs but never into the generation header, and keeps
    its BOS. A response still too long is then cut on the right; it loses its EOS, and gets no new one: the text did not
    end there. n_prompt_cut: tokens; n_responses_cut: responses. Two responses may be equal after the cut: such a pair
    is for the caller to drop. Raises UserError when `max_len` does not hold the header and one token.
    """
    bos = prompt_ids[:1] if tokenizer.wants_bos else []
    header = min(tokenizer.header_length + len(bos), len(prompt_ids))
    if max_len < header + 1:
        raise UserError(f"max_len is {max_len}: at least {header + 1} are needed, the generation header and one token")
    keep = max(header, max_len - max(len(response) for response in responses))
    prompt = prompt_ids if len(prompt_ids) <= keep else bos + prompt_ids[len(prompt_ids) - keep + len(bos):]
    room = max_len - len(prompt)
    n_responses_cut = sum(len(response) > room for response in responses)
    return prompt, [response[:room] for response in responses], len(prompt_ids) - len(prompt), n_responses_cut
