"""Chat and compare on a tiny random model: greedy answers against a hand-written loop and transformers, trimming."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from gptlife.data.errors import UserError
from gptlife.stages.generation import chat, sampler
from gptlife.stages.generation.chat import Sampling
from gptlife.stages.runtime import artifact

CONTEXT = 48


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A GPT-2 of 8 dimensions with random weights and 300 tokens, as an output would be."""
    torch = pytest.importorskip("torch")
    from transformers import GPT2Config, GPT2LMHeadModel

    from gptlife.data.tokens import train_tokenizer

    path = tmp_path_factory.mktemp("models") / "ppo-1"
    tokenizer = train_tokenizer(["the cat sat on the mat and the dog sat on the cat"] * 3, 300, CONTEXT)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=300,
            n_positions=CONTEXT,
            n_embd=8,
            n_layer=1,
            n_head=1,
            initializer_range=1.0,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))
    return path


def user(*texts: str) -> list[dict[str, str]]:
    """A conversation in turns, the user first."""
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def test_a_greedy_answer_is_the_argmax_token_by_token(model_dir):
    import torch

    speaker = chat.load(model_dir)
    tokenizer = speaker.tokenizer
    ids = tokenizer.apply_chat_template(user("the cat"), add_generation_prompt=True, return_dict=False)
    expected = []
    while len(expected) < 12:
        with torch.no_grad():
            expected.append(int(speaker.model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
        if expected[-1] == tokenizer.eos_token_id:
            break
    text = tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert speaker.answer(user("the cat"), Sampling(0.0, 12), seed=0) == text
    assert speaker.answer(user("a mat"), Sampling(0.0, 12), seed=0) != text
    batch = torch.tensor([ids])
    made = speaker.model.generate(batch, attention_mask=torch.ones_like(batch), max_new_tokens=12, do_sample=False)
    assert text == tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("ended", [True, False])
def test_an_answer_ends_at_end_of_text_and_is_text_without_special_tokens(model_dir, ended):
    import torch

    speaker = chat.load(model_dir)
    words = speaker.tokenizer(" the mat").input_ids
    end = speaker.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    said = iter([*words, end if ended else words[0], *words])

    def forward(input_ids, **_):  # whatever it reads, it says the next of `said`
        logits_BTV = torch.zeros(*input_ids.shape, 300)
        logits_BTV[0, -1, next(said)] = 1.0
        return SimpleNamespace(logits=logits_BTV)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speaker.model, "forward", forward)
        answer = speaker.answer(user("the cat"), Sampling(0.0, len(words) + 2), 0)
    assert (answer == "the mat") is ended


def test_a_sampled_answer_is_of_the_temperature(model_dir):
    speaker = chat.load(model_dir)
    answers = {
        temperature: {speaker.answer(user("the cat"), Sampling(temperature, 4), seed) for seed in range(20)}
        for temperature in (0.0, 0.01, 1.0)
    }
    assert len(answers[0.0]) == 1
    assert answers[0.01] == answers[0.0]
    assert len(answers[1.0]) > 5


def test_a_sampled_answer_depends_on_the_seed_alone(model_dir):
    speaker = chat.load(model_dir)
    answers = [speaker.answer(user("the cat"), Sampling(1.0, 12), seed) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_the_oldest_turns_go_where_the_conversation_is_too_long(model_dir, monkeypatch):
    speaker = chat.load(model_dir)
    read = []
    sample = sampler.sample
    monkeypatch.setattr(
        sampler,
        "sample",
        lambda model, rows, **how: (read.extend(row.tokens for row in rows), sample(model, rows, **how))[1],
    )

    def template(messages):
        return speaker.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    short, long = user("x" * 10, "y", "the dog"), user("x" * 40, "y", "the dog")
    for messages in (short, long):
        speaker.answer(messages, Sampling(0.0, 12), 0)
    assert read == [template(short), template(user("the dog"))]
    with pytest.raises(UserError) as error:
        speaker.answer(user("x" * 60), Sampling(0.0, 12), 0)
    # 60 letters of one byte each, <|user|> and <|assistant|>
    assert str(error.value) == (
        "ppo-1: the prompt has 62 tokens, and 36 fit beside an answer of 12; shorten it, or lower --max-tokens"
    )


def test_a_model_without_a_template_continues_the_text(model_dir):
    import torch

    speaker = chat.load(model_dir)
    speaker.tokenizer.chat_template = None
    ids = speaker.tokenizer("the cat").input_ids
    with torch.no_grad():
        first = int(speaker.model(torch.tensor([ids])).logits[0, -1].argmax())
    answer = speaker.answer(user("the dog", "x", "the cat"), Sampling(0.0, 1), 0)
    assert answer == speaker.tokenizer.decode([first], skip_special_tokens=True).strip()


class Echo:
    """A speaker that repeats the whole conversation and its seed."""

    def __init__(self, chat_template: str | None = "x") -> None:
        self.name = "echo"
        self.tokenizer = SimpleNamespace(chat_template=chat_template)

    def answer(self, messages, sampling, seed):
        return "|".join(message["content"] for message in messages) + f"#{seed}"


def test_a_conversation_grows_is_reset_and_quit():
    said = []
    chat.talk(Echo(), ["a\n", "\n", " b \n", "/reset\n", "c\n", "/quit\n", "d\n"], said.append, Sampling(seed=7))
    assert said == ["a#8", "a|a#8|b#10", "(a new conversation)", "c#8"]


def test_a_conversation_with_a_base_model_says_that_it_continues():
    said = []
    chat.talk(Echo(None), ["a"], said.append, Sampling())
    assert said == ["(echo has no chat template: it continues each line as text)", "a#1"]


def test_compare_gives_all_speakers_one_seed():
    rows = list(chat.compare([Echo(), Echo()], [user("a"), user("b", "c", "d")], Sampling(seed=3)))
    assert rows == [("a", ["a#3", "a#3"]), ("d", ["b|c|d#4", "b|c|d#4"])]


def test_prompts_are_read_from_lines_and_from_known_formats(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\n two \nthree\n", encoding="utf-8")
    assert chat.read_prompts(tmp_path / "p.txt", 2) == [user("one"), user("two")]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "one", "completion": "1"}) + "\n", encoding="utf-8")
    assert chat.read_prompts(tmp_path / "p.jsonl", 5) == [user("one")]
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        chat.read_prompts(tmp_path / "empty.txt", 5)
    assert str(error.value) == f"{tmp_path}/empty.txt: no prompt in it; write one per line"
    with pytest.raises(
        UserError, match=r"gone\.txt: can't be read as text \(.*No such file.*\); give a file of prompts$"
    ):
        chat.read_prompts(tmp_path / "gone.txt", 5)


@pytest.mark.parametrize(
    ("config", "speaks"),
    [
        ('{"architectures": ["GPT2LMHeadModel"]}', True),
        ('{"architectures": ["GPT2ForSequenceClassification"]}', False),
        ("{}", True),
        ("damaged", False),
        (None, False),
    ],
)
def test_a_reward_model_is_no_language_model(tmp_path, config, speaks):
    if config is not None:
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
    assert chat.is_language_model(tmp_path) is speaks


def test_what_does_not_speak_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        chat.load(tmp_path)
    assert str(error.value) == f"{tmp_path}: no language model to talk to; give an output of pretrain, sft or ppo"
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}', encoding="utf-8")
    with pytest.raises(UserError, match="no model can be loaded"):
        chat.load(tmp_path)


def test_a_damaged_model_is_not_spoken_to(model_dir, tmp_path):
    shutil.copytree(model_dir, artifact.begin(tmp_path / "out", {}), dirs_exist_ok=True)
    artifact.commit(tmp_path / "out.partial", tmp_path / "out", {})
    chat.load(tmp_path / "out")
    weights = bytearray((tmp_path / "out" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "out" / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        chat.load(tmp_path / "out")
