"""Text to token ids and back: a byte-level BPE tokenizer and the ChatML layout of a conversation.

    <|im_start|>user\\n2+2?<|im_end|>\\n<|im_start|>assistant\\n          prompt: ends with the generation header
    4<|im_end|>                                                       response: ends with exactly one EOS

Prompt and response are tokenised apart and joined as ids. So the first response position is len(prompt_ids), whatever
the texts are; tokenising the joined text lets BPE merge across the boundary and moves it. There is no padding and no
mask here: masks are made from these lengths.
"""
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nanopref.errors import UserError

PAD, BOS, IM_START, IM_END = SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>")
EOS = IM_END  # not PAD: a model trained with EOS = PAD and a mask on PAD never learns to stop

# The same layout as encode_prompt, for tokenizer_config.json: other tools then render what this model was trained on.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(texts, vocab_size):
    """Byte-level BPE learned from `texts` (iterable of str); the same texts give the same tokenizer.

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
    return tokenizer


def _encode_text(tokenizer, text):
    """Ids of `text` where a literal "<|im_end|>" is ordinary characters: nobody ends a turn from inside its text."""
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        tokenizer.encode_special_tokens = before  # the tokenizer belongs to the caller


def encode_prompt(tokenizer, messages):
    """Ids of a conversation, ending with the generation header; [BOS] when `messages` is empty (plain text follows).

    messages: list of {"role": "system" | "user" | "assistant", "content": str}.
    """
    if not messages:
        return [tokenizer.token_to_id(BOS)]
    start, end = tokenizer.token_to_id(IM_START), tokenizer.token_to_id(IM_END)
    newline = _encode_text(tokenizer, "\n")
    ids = []
    for message in messages:
        ids += [start] + _encode_text(tokenizer, message["role"] + "\n" + message["content"]) + [end] + newline
    return ids + [start] + _encode_text(tokenizer, "assistant\n")


def encode_response(tokenizer, text):
    """Ids of a response, ending with exactly one EOS: stopping is part of what is learned and scored."""
    return _encode_text(tokenizer, text) + [tokenizer.token_to_id(EOS)]


def decode(tokenizer, ids):
    """Text of `ids`, special tokens left out; bytes that are not whole UTF-8 characters become U+FFFD."""
    return tokenizer.decode(ids, skip_special_tokens=True)


def truncate(tokenizer, prompt_ids, responses, max_len):
    """Fits prompt + each response into `max_len` tokens: (prompt_ids, responses, n_prompt_cut, n_responses_cut).

    All `responses` (list of id lists) keep one common prompt: a preference is between answers to the same x. The prompt
    is cut first, from the left, as far as the longest response needs but never into the generation header. A response
    still too long is then cut on the right; it loses its EOS, and gets no new one: the text did not end there.
    n_prompt_cut: tokens; n_responses_cut: responses. Two responses may be equal after the cut: such a pair is for
    the caller to drop. Raises UserError when `max_len` does not hold the header and one token.
    """
    start = tokenizer.token_to_id(IM_START)
    header = prompt_ids[::-1].index(start) + 1 if start in prompt_ids else len(prompt_ids)
    if max_len < header + 1:
        raise UserError(f"max_len is {max_len}: at least {header + 1} are needed, the generation header and one token")
    keep = max(header, max_len - max(len(response) for response in responses))
    prompt = prompt_ids[-keep:]
    room = max_len - len(prompt)
    n_responses_cut = sum(len(response) > room for response in responses)
    return prompt, [response[:room] for response in responses], len(prompt_ids) - len(prompt), n_responses_cut
