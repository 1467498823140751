"""What a user can mend is said in one line, and nothing is stepped on a number that is no number."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.reward import objective
from gptlife.stages import comparisons, evaluation, ppo, pretrain, reward_model, sft, tokenizer
from gptlife.stages.rl import loop
from gptlife.stages.runtime.device import best_device
from gptlife.stages.training.lm import PackedRows

STEPS = {"steps": 1, "batch_size": 4, "minibatch_size": 4, "max_new_tokens": 8}


@pytest.fixture
def refusal(run: Any, tmp_path: Path) -> Callable[..., str]:
    """`refusal(stage, fields, **inputs)`: the one line with which it is refused."""

    def message(stage: Any, fields: dict[str, Any], **inputs: Path) -> str:
        with pytest.raises(UserError) as error:
            run(stage, fields, tmp_path / "output", **inputs)
        assert "\n" not in str(error.value)
        return str(error.value)

    return message


@pytest.fixture
def long_prompt(tmp_path: Path) -> str:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "x"}) + "\n" + json.dumps({"prompt": "Zyx! " * 40}) + "\n", encoding="utf-8")
    return str(path)


def copy_of(path: Path, output: Path, **changes: Any) -> Path:
    """The model at `path` with another tokenizer (`chat_template`, `tokens`)."""
    model, vocabulary = AutoModelForCausalLM.from_pretrained(str(path)), AutoTokenizer.from_pretrained(str(path))
    if "chat_template" in changes:
        vocabulary.chat_template = changes["chat_template"]
    vocabulary.add_tokens(changes.get("tokens", []))
    model.resize_token_embeddings(len(vocabulary))
    model.save_pretrained(str(output))
    vocabulary.save_pretrained(str(output))
    return output


def test_prompt_longer_than_the_context(tiny: Any, refusal: Callable[..., str], long_prompt: str) -> None:
    n_tokens = 3 + len(AutoTokenizer.from_pretrained(str(tiny.sft))(("Zyx! " * 40).strip())["input_ids"]) - 1
    expected = (
        f"prompt 2 has {n_tokens} tokens; with max_new_tokens 8 the model's context of 64 leaves 56; shorten it or "
        "lower max_new_tokens"
    )
    labelers = {"function": f"{tiny.functions}:rank"}
    ranked = {"prompts": long_prompt, "validation": 0.5, "labelers": labelers, "max_new_tokens": 8, "chunk": 1}
    assert "comparisons.prompts: prompt 1 has" in refusal(comparisons.STAGE, ranked, policy=tiny.sft)
    found = refusal(ppo.STAGE, {**STEPS, "prompts": long_prompt}, policy=tiny.sft, reward=tiny.reward_model)
    assert found == f"ppo.prompts: {expected}"
    judged = {"prompts": long_prompt, "judge": {"function": f"{tiny.functions}:count_e"}, "max_new_tokens": 8}
    assert refusal(evaluation.STAGE, judged, sft=tiny.sft) == f"evaluation.prompts: {expected}"


def test_conversation_longer_than_the_context(tiny: Any, refusal: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "x", "completion": "Zyx! " * 40}) + "\n", encoding="utf-8")
    found = refusal(sft.STAGE, {"data": str(path), "validation": str(tiny.conversations)}, base=tiny.pretrain)
    assert found.startswith("sft.data: conversation 1 has ")
    assert found.endswith("the limit is 64; shorten it, raise max_length, or set too_long: skip")


def test_no_validation_rows(tiny: Any, refusal: Callable[..., str]) -> None:
    message = "leaves no row on one side; give another share, or more rows"
    talks = {"data": str(tiny.conversations), "validation": 0.001}
    assert refusal(sft.STAGE, talks, base=tiny.pretrain) == f"sft.validation: a share of 0.001 of 48 rows {message}"
    labelers = {"function": f"{tiny.functions}:rank"}
    asked = {"prompts": str(tiny.prompts), "validation": 0.999, "labelers": labelers}
    found = refusal(comparisons.STAGE, asked, policy=tiny.sft)
    assert found == f"comparisons.validation: a share of 0.999 of 24 rows {message}"


def test_no_chat_template(tiny: Any, refusal: Callable[..., str], tmp_path: Path) -> None:
    base = copy_of(tiny.sft, tmp_path / "base", chat_template=None)
    expected = "adopted model has no chat template; give one with `chat_template`"
    assert refusal(sft.STAGE, {"data": str(tiny.conversations)}, base=base) == expected
    assert refusal(reward_model.STAGE, {}, base=base, comparisons=tiny.comparisons) == expected


def test_another_tokenizer(tiny: Any, refusal: Callable[..., str], tmp_path: Path) -> None:
    fields = {**STEPS, "prompts": str(tiny.prompts)}
    template = AutoTokenizer.from_pretrained(str(tiny.sft)).chat_template + " "
    for name, changes in (("tokens", {"tokens": ["wug"]}), ("template", {"chat_template": template})):
        policy = copy_of(tiny.sft, tmp_path / name, **changes)
        found = refusal(ppo.STAGE, fields, policy=policy, reward=tiny.reward_model)
        assert found.startswith(f"{tiny.reward_model}: its tokenizer or chat template differs from that of {policy}; ")


def test_a_folder_without_a_model(tiny: Any, refusal: Callable[..., str]) -> None:
    found = refusal(sft.STAGE, {"data": str(tiny.conversations)}, base=tiny.tokenizer)
    assert found.startswith(f"{tiny.tokenizer}: no model can be loaded (")
    found = refusal(sft.STAGE, {"data": str(tiny.conversations)}, base=tiny.comparisons)
    assert found.startswith(f"{tiny.comparisons}: no tokenizer can be loaded (")


def test_no_text(refusal: Callable[..., str], tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n', encoding="utf-8")
    fields = {"data": str(path), "validation": str(tiny.held_out)}
    for stage, inputs in ((tokenizer.STAGE, {}), (pretrain.STAGE, {"tokenizer": tiny.tokenizer})):
        known = {name: value for name, value in fields.items() if name in stage.config.model_fields}
        assert refusal(stage, known, **inputs).startswith(f"{path}:1: 'text' is empty; ")


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^device: 'cuda:0' wanted, but torch sees no CUDA device; use device: cpu$"):
        best_device("cuda:0")


def poisoned(kind: Any, path: Path, output: Path, parameter: str, row: int = 0) -> Path:
    """The model at `path` with a NaN in one weight, the first of a row."""
    model = kind.from_pretrained(str(path))
    with torch.no_grad():
        model.get_parameter(parameter)[row].view(-1)[0] = float("nan")
    model.save_pretrained(str(output))
    AutoTokenizer.from_pretrained(str(path)).save_pretrained(str(output))
    return output


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("an optimizer moved")


def test_loss_that_is_no_number(
    tiny: Any, refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", never)
    # Of a position that no short text has: a model that is no number from the first token on is not loaded.
    base = poisoned(AutoModelForCausalLM, tiny.pretrain, tmp_path / "base", "transformer.wpe.weight", row=12)
    found = refusal(sft.STAGE, {"data": str(tiny.conversations)}, base=base)
    assert found.startswith("sft: step 1: loss is nan on rows [")
    found = refusal(reward_model.STAGE, {}, base=base, comparisons=tiny.comparisons)
    assert found.startswith("reward_model: step 1: loss is nan on rows [")


def test_score_that_is_no_number(
    tiny: Any, refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", never)
    reward = poisoned(AutoModelForSequenceClassification, tiny.reward_model, tmp_path / "reward", "score.weight")
    found = refusal(ppo.STAGE, {**STEPS, "prompts": str(tiny.prompts)}, policy=tiny.sft, reward=reward)
    assert re.fullmatch(
        r"ppo: step 1: the score of the answer to prompt \d+ is nan; nothing was stepped; look at the reward model",
        found,
    )


def test_the_prompt_of_that_score_is_named(
    tiny: Any, steps_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trainer = steps_of(ppo.PPO, ppo.PPOConfig, {**STEPS, "steps": 9, "prompts": str(tiny.prompts)}, tmp_path / "one")
    plain = loop.read

    def broken(*given: Any) -> Any:
        readings = plain(*given)
        readings.scores_B[2] = float("inf")
        return readings

    monkeypatch.setattr(loop, "read", broken)
    number = trainer.order.batch(5)[2] + 1
    with pytest.raises(UserError, match=rf"^ppo: step 6: the score of the answer to prompt {number} is inf; "):
        trainer.step(5, 0.1)


@pytest.mark.parametrize("loss", ["policy_loss", "value_loss"])
def test_gradient_of_one_network_that_is_no_number(
    loss: str, tiny: Any, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the other doesn't move either."""
    plain = getattr(objective, loss)

    def broken(*given: Any) -> Any:
        terms = plain(*given)
        return terms._replace(loss_sum=terms.loss_sum * float("nan"))

    monkeypatch.setattr(objective, loss, broken)
    monkeypatch.setattr(torch.optim.AdamW, "step", never)
    found = refusal(ppo.STAGE, {**STEPS, "prompts": str(tiny.prompts)}, policy=tiny.sft, reward=tiny.reward_model)
    assert found.startswith("ppo: step 1, minibatch 1: gradient norm is nan; nothing was stepped; ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_few", ":too_few: returned 1 results for 4 answers; return one per answer"),
        ("not_a_number", "; return a finite number below 1e+15"),
        ("missing", "; check the path and the name"),
    ],
)
def test_reward_functions(name: str, message: str, tiny: Any, refusal: Callable[..., str]) -> None:
    fields = {**STEPS, "prompts": str(tiny.prompts), "reward_function": f"{tiny.functions}:{name}"}
    assert refusal(ppo.STAGE, fields, policy=tiny.sft).endswith(message)
    judged = {"prompts": str(tiny.prompts), "judge": {"function": f"{tiny.functions}:{name}"}, "max_new_tokens": 4}
    assert refusal(evaluation.STAGE, judged, sft=tiny.sft).endswith(message.replace("for 4", "for 24"))


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_max_length_above_the_context(stage: str, tiny: Any, refusal: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "x", "completion": "Zyx! " * 40}, {"prompt": "y", "completion": "Zyx! " * 40}]
    if stage == "reward_model":
        rows = [{"prompt": "x", "chosen": "Zyx! " * 40, "rejected": "Zyx? " * 40}] * 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stages = {"sft": sft.STAGE, "reward_model": reward_model.STAGE}
    fields = {"data": str(path), "validation": 0.5, "max_length": 1000}
    expected = f"{stage}.max_length: 1000 is longer than the model's context of 64; lower it"
    assert refusal(stages[stage], fields, base=tiny.sft) == expected


@pytest.mark.parametrize("stage", ["sft", "ppo", "evaluation"])
def test_rows_of_text_longer_than_the_context(stage: str, tiny: Any, refusal: Callable[..., str]) -> None:
    text = str(tiny.text)
    if stage == "sft":
        fields = {"data": str(tiny.conversations), "pretraining": text, "pretraining_length": 65}
        found = refusal(sft.STAGE, fields, base=tiny.pretrain)
    elif stage == "ppo":
        fields = {**STEPS, "prompts": str(tiny.prompts), "pretraining": text, "ptx_length": 65}
        found = refusal(ppo.STAGE, fields, policy=tiny.sft, reward=tiny.reward_model)
    else:
        judge = {"function": f"{tiny.functions}:count_e"}
        fields = {"prompts": str(tiny.prompts), "judge": judge, "max_new_tokens": 4, "validation": text}
        found = refusal(evaluation.STAGE, {**fields, "validation_length": 65}, sft=tiny.sft)
    names = {"sft": "pretraining", "ppo": "ptx", "evaluation": "validation"}
    assert found == f"{stage}.{names[stage]}_length: 65 is longer than the model's context of 64; lower it"


def test_rows_of_text_are_as_long_as_the_context_allows(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    """The context here is 64, less than the usual 128."""
    text, talks = str(tiny.text), str(tiny.conversations)
    sizes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        init = PackedRows.__init__

        def watched(self: PackedRows, stream: Any, row_length: int) -> None:
            sizes.append(row_length)
            init(self, stream, row_length)

        patch.setattr(PackedRows, "__init__", watched)
        run(sft.STAGE, {"data": talks, "epochs": 0.1, "pretraining": text}, tmp_path / "sft", base=tiny.pretrain)
        fields = {**STEPS, "prompts": str(tiny.prompts), "pretraining": text, "ptx_rows_per_episode": 0.5}
        run(ppo.STAGE, fields, tmp_path / "ppo", policy=tiny.sft, reward=tiny.reward_model)
        fields = {"prompts": str(tiny.prompts), "judge": {"function": f"{tiny.functions}:count_e"}}
        options = {**fields, "max_new_tokens": 4, "validation": str(tiny.held_out)}
        run(evaluation.STAGE, options, tmp_path / "evaluation", sft=tiny.sft)
    assert sizes == [64, 64, 64]


def test_packing_and_pretraining(tiny: Any, refusal: Callable[..., str]) -> None:
    options = {"data": str(tiny.conversations), "packing": True, "pretraining": str(tiny.text)}
    expected = "sft.packing: true can't go with `pretraining`; set packing: false, or leave pretraining out"
    assert refusal(sft.STAGE, options, base=tiny.pretrain) == expected


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_gradient_checkpointing_is_heard(stage: str, tiny: Any, run: Any, tmp_path: Path) -> None:
    from transformers import PreTrainedModel

    heard = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "gradient_checkpointing_enable", lambda self, *_, **__: heard.append(1))
        if stage == "sft":
            fields = {"data": str(tiny.conversations), "epochs": 0.1, "gradient_checkpointing": True}
            run(sft.STAGE, fields, tmp_path / "one", base=tiny.pretrain)
        else:
            fields = {"gradient_checkpointing": True}
            run(reward_model.STAGE, fields, tmp_path / "one", base=tiny.sft, comparisons=tiny.comparisons)
    assert heard


def test_a_reward_function_enters_the_address_by_content(tiny: Any, tmp_path: Path) -> None:
    def identity(path: Path) -> Any:
        fields = {"prompts": str(tiny.prompts), "reward_function": f"{path}:count_e"}
        return ppo.STAGE.identity(decode(ppo.PPOConfig, fields, "ppo"))

    other = tmp_path / "other.py"
    other.write_text(tiny.functions.read_text(encoding="utf-8"), encoding="utf-8")
    assert identity(other) == identity(tiny.functions)
    other.write_text("def count_e(prompts, answers): ...", encoding="utf-8")
    assert identity(other) != identity(tiny.functions)


def test_demonstrations_that_do_not_fit(tiny: Any, refusal: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "x", "completion": "Zyx! " * 40}) + "\n", encoding="utf-8")
    fields = {"demonstrations": str(path)}
    found = refusal(reward_model.STAGE, fields, base=tiny.sft, comparisons=tiny.comparisons)
    assert found == (
        "reward_model.demonstrations: none of 1 has at most 64 tokens; give shorter ones, or raise max_length"
    )
    assert not list((tmp_path / "output").rglob("*.safetensors"))
