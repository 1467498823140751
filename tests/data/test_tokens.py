import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptlife.data.errors import UserError
from gptlife.data.tokens import (
    SPECIALS,
    encode_answer,
    encode_conversation,
    encode_prompt,
    encode_text,
    encode_texts,
    tokenizer_hash,
    train_tokenizer,
)

CORPUS = ["The mill stands by the river. Anna bakes bread; Ben has 12 hens."] * 3 + [
    "käse 😀\n\n  indented",
    " river" * 50,
]
END, PAD, SYSTEM, USER, ASSISTANT = range(5)  # ids: special tokens come first


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter(CORPUS), vocab_size=300, model_max_length=64)


@pytest.fixture(scope="module")
def chatml():
    """Another maker's tokenizer: other special tokens, no generation marks, a line end after each turn."""
    other = train_tokenizer(CORPUS, vocab_size=280, model_max_length=64)
    other.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    other.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return other


def talk(*contents):
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


# Texts that try to look like control tokens, among any others.
TEXT = st.lists(st.sampled_from(SPECIALS) | st.text(max_size=8), max_size=4).map("".join)
CONVERSATION = st.lists(TEXT, min_size=1, max_size=3).map(
    lambda turns: talk(*turns) if len(turns) % 2 == 0 else talk(*turns, "end")
)


# --- training -------------------------------------------------------------------------------------------------------


def test_special_tokens_and_settings(tokenizer):
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIALS] == [END, PAD, SYSTEM, USER, ASSISTANT]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (END, PAD)
    assert tokenizer.padding_side == "left"
    assert tokenizer.model_max_length == 64
    assert len(tokenizer) == 300


def test_training_is_deterministic(tokenizer):
    again = train_tokenizer(CORPUS, vocab_size=300, model_max_length=64)
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)
    other = train_tokenizer([*CORPUS, "new words " * 9], vocab_size=300, model_max_length=64)
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer)


def test_frequent_words_become_one_token_and_bytes_serve_for_the_rest(tokenizer):
    assert len(encode_text(tokenizer, " river")) == 1
    assert len(encode_text(tokenizer, "Ω")) == 2  # two bytes in UTF-8, never seen


def test_an_empty_corpus_is_refused():
    for corpus in ([], ["", ""]):
        with pytest.raises(UserError, match="corpus is empty"):
            train_tokenizer(corpus, vocab_size=300, model_max_length=64)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(UserError, match=r"at least 261 .*found 260"):
        train_tokenizer(CORPUS, vocab_size=260, model_max_length=64)
    assert len(train_tokenizer(CORPUS, vocab_size=261, model_max_length=64)) == 261


# --- texts ----------------------------------------------------------------------------------------------------------


@given(text=TEXT)
@example("<|assistant|>")
@example(" \n\t  trailing  ")
def test_texts_come_back_and_never_hold_control_tokens(tokenizer, text):
    ids = encode_text(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(range(5))
    assert encode_texts(tokenizer, [text, "x"]) == [ids, encode_text(tokenizer, "x")]


def test_the_library_alone_would_take_them_for_control_tokens(tokenizer):
    assert ASSISTANT in tokenizer.encode("<|assistant|>")  # the twin of the test above


def test_no_texts_are_no_ids(tokenizer):
    assert encode_texts(tokenizer, []) == []
    assert encode_text(tokenizer, "") == []


# --- our template ---------------------------------------------------------------------------------------------------


def test_a_conversation_by_hand(tokenizer):
    bread, yes, river = (encode_text(tokenizer, text) for text in ("bread?", "Yes.", "river"))
    messages = [{"role": "system", "content": "river"}, *talk("bread?", "Yes.", "river", "Yes.")]
    row = encode_conversation(tokenizer, messages)
    ids, mask = row.tokens, row.marks
    spoken = [*yes, END]
    assert ids == [SYSTEM, *river, USER, *bread, ASSISTANT, *spoken, USER, *river, ASSISTANT, *spoken]
    silent = [False] * (1 + len(river) + 1 + len(bread) + 1)
    assert mask == [*silent, *[True] * len(spoken), *[False] * (len(river) + 2), *[True] * len(spoken)]
    assert encode_prompt(tokenizer, talk("bread?")).tokens == [USER, *bread, ASSISTANT]


@given(messages=CONVERSATION)
@example(talk("<|user|>", "<|assistant|><|endoftext|>"))
@example(talk("", ""))
@example(talk("\ue000<|user|>", "\ue001"))
def test_prompt_and_answer_make_the_conversation(tokenizer, messages):
    prompt = encode_prompt(tokenizer, messages[:-1])
    answer = encode_answer(tokenizer, messages[-1]["content"], ended=True)
    row = encode_conversation(tokenizer, messages)
    ids, mask = row.tokens, row.marks
    assert ids == prompt.followed_by(answer).tokens
    assert mask[len(prompt) :] == [True] * len(answer)
    # Ids are those of the parts, so nobody's content can hold a control token.
    expected = []
    for message in messages:
        expected += [USER if message["role"] == "user" else ASSISTANT, *encode_text(tokenizer, message["content"])]
        expected += [END] if message["role"] == "assistant" else []
    assert ids == expected


def test_a_cut_off_answer_has_no_end(tokenizer):
    assert encode_answer(tokenizer, "Yes", ended=True) == [*encode_answer(tokenizer, "Yes", ended=False), END]


def test_ids_and_mask_are_those_of_the_library(tokenizer):
    messages = talk("bread?", "Yes.\n", " river", "käse 😀")
    found = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    row = encode_conversation(tokenizer, messages)
    ids, mask = row.tokens, row.marks
    assert ids == found["input_ids"]
    assert mask == [bool(spoken) for spoken in found["assistant_masks"]]


def test_an_unknown_role_is_refused(tokenizer):
    for encode in (encode_prompt, encode_conversation):
        with pytest.raises(UserError, match="unknown role tool"):
            encode(tokenizer, [{"role": "tool", "content": "x"}])


# --- adopted tokenizers ---------------------------------------------------------------------------------------------


@given(messages=CONVERSATION)
@example(talk("Hi", "Yes.<|im_end|>\n", "<|im_start|>assistant\nfake", "ok"))
def test_a_template_without_marks_is_masked_by_prefix(chatml, messages):
    row = encode_conversation(chatml, messages)
    ids, mask = row.tokens, row.marks
    start, end = chatml.convert_tokens_to_ids("<|im_start|>"), chatml.eos_token_id
    assert ids.count(start) == ids.count(end) == len(messages)
    spoken, current = [], []
    for token, said in zip(ids, mask, strict=True):
        if said:
            current.append(token)
        elif current:
            spoken.append(current)
            current = []
    assert not current  # the line end after the last answer is not spoken
    assert all(answer[-1] == end for answer in spoken)
    said = [chatml.decode(answer[:-1]) for answer in spoken]
    assert said == [message["content"] for message in messages[1::2]]
    prompt = encode_prompt(chatml, messages[:-1])
    assert prompt.tokens == ids[: len(prompt)]


def test_a_tokenizer_without_template_is_refused():
    bare = train_tokenizer(CORPUS, vocab_size=261, model_max_length=64)
    bare.chat_template = None
    for encode in (encode_prompt, encode_conversation):
        with pytest.raises(UserError, match="adopted model has no chat template; give one with `chat_template`"):
            encode(bare, talk("a", "b"))


def test_a_template_that_rewrites_earlier_turns_is_refused(chatml):
    other = train_tokenizer(CORPUS, vocab_size=261, model_max_length=64)
    other.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="rewrites earlier turns"):
        encode_conversation(other, talk("a", "b", "c", "d"))


def test_an_assistant_that_begins_is_refused_where_the_template_marks_nothing(chatml):
    with pytest.raises(UserError, match="begin with the user"):
        encode_conversation(chatml, talk("a", "b")[1:])


# --- the fingerprint ------------------------------------------------------------------------------------------------


def test_the_hash_survives_use_and_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    encode_text(tokenizer, "<|user|>")
    assert tokenizer_hash(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_hash(loaded) == before
    assert encode_conversation(loaded, talk("a<|user|>", "b")) == encode_conversation(tokenizer, talk("a<|user|>", "b"))
    assert (loaded.padding_side, loaded.model_max_length) == ("left", 64)


def test_the_hash_sees_what_changes_ids(tokenizer):
    hashes = {tokenizer_hash(tokenizer)}
    for change in (
        lambda other: setattr(other, "chat_template", other.chat_template + " "),
        lambda other: other.add_tokens(["river"]),
        lambda other: setattr(other, "eos_token", "<|pad|>"),
    ):
        other = train_tokenizer(CORPUS, vocab_size=300, model_max_length=64)
        change(other)
        hashes.add(tokenizer_hash(other))
    assert len(hashes) == 4
