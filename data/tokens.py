"""Tokens: a byte-level BPE tokenizer with a chat template, and text, prompts and conversations as token ids.

The tokenizer is GPT-2's scheme [Radford et al. 2019, section 2.2]: 256 byte symbols, merges that never cross GPT-2's
character-class split, no normalisation, so any text goes in and comes back unchanged. `<|endoftext|>` ends documents
and answers; padding is a token of its own, so that a mask is never guessed from ids. The chat template writes

    <|user|>question<|assistant|>answer<|endoftext|><|user|>...

with the answer and its end token inside `{% generation %}`: the positions of the loss.

Control tokens come from the template only. A text that contains "<|assistant|>" is encoded as those characters;
otherwise the writer of a prompt could speak as the assistant. `transformers` encodes whatever a rendered chat contains,
so such contents are marked before rendering and encoded piece by piece afterwards. This covers all tokens that a
tokenizer marks as special.

All functions except `train_tokenizer` work with any fast Hugging Face tokenizer. Left out: tool calls and images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gptlife.data.errors import UserError
from gptlife.data.turns import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END, PAD, SYSTEM, USER, ASSISTANT = "<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIALS = (END, PAD, SYSTEM, USER, ASSISTANT)
SMALLEST_VOCABULARY = 256 + len(SPECIALS)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] in ('system', 'user') %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """What a model reads as one row: a prompt, a prompt with its answer, a conversation, a stretch of text.

    Token ids, and which of them are learnt or scored; `len` counts the tokens. Everything between the encoding (here
    and in `answers.py`) and the tensors (`stages/modeling/forward.py`) passes this object on whole. Another modality is
    a field here and an entry of `inputs` there.
    """

    tokens: list[int]
    marks: list[bool]
    """For each token, whether it is the model's to say: an answer and its end token. A prompt has none."""

    @classmethod
    def prompt(cls, tokens: Sequence[int]) -> Encoded:
        """Tokens that the model only reads."""
        return cls(list(tokens), [False] * len(tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    def followed_by(self, answer: Sequence[int]) -> Encoded:
        """This row with the tokens of an answer behind it, marked."""
        return replace(self, tokens=[*self.tokens, *answer], marks=self.marks + [True] * len(answer))

    def without_last(self) -> Encoded:
        """All tokens but the last: what is read to predict each token but the first."""
        return replace(self, tokens=self.tokens[:-1], marks=self.marks[:-1])

    def split(self) -> tuple[Encoded, list[int]]:
        """The prompt and the answer's tokens of `prompt.followed_by(answer)`."""
        begin = len(self) - sum(self.marks)
        return replace(self, tokens=self.tokens[:begin], marks=self.marks[:begin]), self.tokens[begin:]


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most `vocab_size` entries (fewer if the text runs out of pairs to merge).

    Raises:
        UserError: no text at all, or `vocab_size` below the 256 bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < SMALLEST_VOCABULARY:
        parts = f"256 bytes + {len(SPECIALS)} special tokens"
        raise UserError(f"vocab_size: must be at least {SMALLEST_VOCABULARY} ({parts}), found {vocab_size}; raise it")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_not_empty(texts), trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text. No special tokens are added, and those that it spells stay text."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """`encode_text` of many texts in one call, on all cores."""
    if not texts:
        return []
    # `verbose=False`: no warning that a text is longer than the model's limit; the caller cuts or packs it.
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, **options)["input_ids"]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Encoded:
    """A prompt, up to and including the header of the assistant's turn.

    Raises:
        UserError: the tokenizer has no chat template, or its template refuses the messages.
    """
    marked, mark = _mark(tokenizer, messages)
    return Encoded.prompt(_encode_rendered(tokenizer, _render(tokenizer, marked, generation_prompt=True), mark)[0])


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str, ended: bool) -> list[int]:
    """Ids of an answer, with the end token if it `ended` (a cut-off answer did not).

    With our template, `encode_prompt(m).followed_by(encode_answer(a, True))` is `encode_conversation(m + a)` where `m`
    has no answer yet.
    """
    return encode_text(tokenizer, answer) + ([tokenizer.eos_token_id] if ended else [])


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Encoded:
    """A conversation; what the assistant says is marked (its answers and their end tokens).

    The marks come from the template's `{% generation %}` if it has one. Otherwise each answer is what the rendered text
    gains from "prompt with the assistant's header" to "prompt with answer". That needs a template whose text for the
    first turns is a prefix of its text for all; white space after the answer's end token is not counted.

    Raises:
        UserError: no chat template, or one that refuses the messages, or one without that property.
    """
    marked, mark = _mark(tokenizer, messages)
    if re.search(r"\{%-?\s*generation\s*-?%\}", _template(tokenizer)):
        text, spans = _render_with_spans(tokenizer, marked)
    else:
        text = _render(tokenizer, marked)
        spans = _spans_by_prefix(tokenizer, marked, text)
    ids, starts = _encode_rendered(tokenizer, text, mark)
    return Encoded(ids, [any(begin <= start < end for begin, end in spans) for start in starts])


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex sha256 of what determines a tokenizer's ids: vocabulary, merges, splits, special tokens, chat template.

    Equal hashes mean equal ids for every text and chat; padding side and maximum length don't count.
    """
    model = json.loads(_fast(tokenizer).backend_tokenizer.to_str())
    del model["padding"], model["truncation"]  # state of the last call, not of the tokenizer
    parts = [model, {k: str(v) for k, v in tokenizer.special_tokens_map.items()}, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    empty = True
    for text in texts:
        empty = empty and not text
        yield text
    if empty:
        raise UserError("tokenizer: the corpus is empty; give it text in `data`")


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        raise UserError("adopted model has no chat template; give one with `chat_template`")
    return tokenizer.get_chat_template()


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, generation_prompt: bool = False) -> str:
    """The chat as the template writes it."""
    import jinja2

    _template(tokenizer)
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt))
    except jinja2.TemplateError as error:
        raise _refused(messages, error) from None


def _render_with_spans(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[str, list[Span]]:
    """The rendered chat and the character spans of its generation blocks."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    options: dict[str, Any] = {"chat_template": _template(tokenizer), "return_assistant_tokens_mask": True}
    options |= tokenizer.special_tokens_map
    rendered: Any
    try:
        rendered = render_jinja_template([messages], **options)
    except jinja2.TemplateError as error:
        raise _refused(messages, error) from None
    (text,), (spans,) = rendered
    return text, spans


def _refused(messages: Messages, error: Exception) -> UserError:
    roles = ", ".join(message["role"] for message in messages)
    return UserError(f"chat template refuses the turns ({roles}): {error}; change the data or give a `chat_template`")


def _spans_by_prefix(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str) -> list[Span]:
    """Character spans of the answers, from renderings of longer and longer parts of the chat."""
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if index == 0:
            raise UserError("chat begins with the assistant, and the template marks no answers; begin with the user")
        before = _render(tokenizer, messages[:index], generation_prompt=True)
        through = _render(tokenizer, messages[: index + 1])
        if not (text.startswith(through) and through.startswith(before)):
            act = "give a `chat_template` with {% generation %} around the answers"
            raise UserError(f"chat template rewrites earlier turns, so answers can't be told apart in it; {act}")
        spans.append((len(before), _end_of_answer(tokenizer, through, len(before))))
    return spans


def _end_of_answer(tokenizer: PreTrainedTokenizerBase, text: str, begin: int) -> int:
    """End of the answer's last control token if only white space follows it, else the end of the text."""
    ends = [control.end() for control in _control_pattern(tokenizer).finditer(text, begin)]
    return ends[-1] if ends and not text[ends[-1] :].strip() else len(text)


def _control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    return _pattern_of(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _pattern_of(tokenizer: PreTrainedTokenizerBase, size: int) -> re.Pattern[str]:
    """Matches every special token; `size` is in the key because tokens may be added later."""
    specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    longest_first = sorted(specials, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _mark(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[Messages, str]:
    """The messages with a mark inside each special token that they spell, and the mark ("" if they spell none)."""
    pattern = _control_pattern(tokenizer)
    contents = "".join(message["content"] for message in messages)
    if not pattern.search(contents):
        return messages, ""
    # A private-use character that the text does not contain; it never reaches the ids.
    mark = next(char for char in map(chr, range(0xE000, 0xF900)) if char not in contents)
    broken = [
        {**message, "content": pattern.sub(lambda spelled: mark.join(spelled[0]), message["content"])}
        for message in messages
    ]
    return broken, mark


def _encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str, mark: str) -> tuple[list[int], list[int]]:
    """(ids, start of each in `text`) of a rendered chat; marked special tokens are encoded as text."""
    if not mark:
        encoded = _fast(tokenizer)(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), [begin for begin, _ in encoded["offset_mapping"]]
    ids: list[int] = []
    starts: list[int] = []
    piece_start = 0
    for control in [*_control_pattern(tokenizer).finditer(text), None]:
        piece = text[piece_start : control.start() if control else len(text)]
        kept = [piece_start + index for index, char in enumerate(piece) if char != mark]
        encoded = _encode_piece(tokenizer, piece.replace(mark, ""))
        ids += encoded["input_ids"]
        starts += [kept[min(begin, len(kept) - 1)] for begin, _ in encoded["offset_mapping"]]
        if control:
            ids.append(_fast(tokenizer).convert_tokens_to_ids(control[0]))
            starts.append(control.start())
            piece_start = control.end()
    return ids, starts


def _encode_piece(tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, Any]:
    if not text:
        return {"input_ids": [], "offset_mapping": []}
    options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
    return _fast(tokenizer)(text, verbose=False, **options)


def _fast(tokenizer: PreTrainedTokenizerBase) -> Any:
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {type(tokenizer).__name__} has no fast form; adopt a model with a tokenizer.json")
    return tokenizer
