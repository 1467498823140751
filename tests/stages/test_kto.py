"""Stage `kto`: TRL's loss and gradient against a loop by hand, labels of rankings, metrics, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.data.tokens import Encoded
from gptlife.stages import kto
from gptlife.stages.modeling import loading
from gptlife.stages.preferences import labels
from gptlife.stages.preferences.implicit_rewards import label_answers, label_metrics, mismatched
from gptlife.stages.preferences.trl_trainer import KTOTrainer

FIELDS = {
    "learning_rate": 1e-3, "batch_size": 6, "kl_batch_size": 3, "warmup_steps": 1, "validate_every": 2,
    "adam_eps": 1e-5,
}  # fmt: skip
ROWS = [
    {"prompt_ids": [3, 20, 21, 4], "completion_ids": [7, 8, 9, 0], "label": True},
    {"prompt_ids": [3, 22, 4], "completion_ids": [11, 12], "label": False},
    {"prompt_ids": [3, 23, 4], "completion_ids": [13, 0], "label": False},
    {"prompt_ids": [3, 24, 25, 4], "completion_ids": [14, 15, 0], "label": False},
]
WEIGHTS = (0.5, 2.0)


@pytest.fixture
def kto_loss(logprob: Any) -> Any:
    """The paper's loss, an answer at a time; the KL from the answers of the row before, over all rows, at least 0."""

    def loss(
        policy: Any, reference: Any, rows: list[Any], beta: float, clamp: bool = True, sign: int = 1, shift: int = 1
    ) -> Any:
        def ratio(prompt: list[int], answer: list[int]) -> Any:
            with torch.no_grad():
                before = logprob(reference, prompt, answer)
            return logprob(policy, prompt, answer) - before

        with torch.no_grad():
            answers = [rows[index - shift]["completion_ids"] for index in range(len(rows))]
            kl = sum(ratio(row["prompt_ids"], answer) for row, answer in zip(rows, answers, strict=True)) / len(rows)
        kl = kl.clamp(min=0) if clamp else kl
        losses = []
        for row in rows:
            gain = sign * beta * (ratio(row["prompt_ids"], row["completion_ids"]) - kl)
            weight, gain = (WEIGHTS[0], gain) if row["label"] else (WEIGHTS[1], -gain)
            losses.append(weight * (1 - torch.sigmoid(gain)))
        return torch.stack(losses).mean()

    return loss


@pytest.mark.parametrize("turned", [False, True])
def test_loss_and_gradient_are_the_papers(turned: bool, tiny: Any, trainer_of: Any, plain: Any, kto_loss: Any) -> None:
    """With the SFT against the pretrained model, and (as a KL estimate below 0) against one of more probability."""
    options = {"desirable_weight": WEIGHTS[0], "undesirable_weight": WEIGHTS[1]}
    trainer = trainer_of(KTOTrainer, kto.STAGE, tiny.pretrain, ROWS, options, beta=0.02)
    policy, reference = plain(tiny.sft), plain(tiny.pretrain)
    if turned:
        for model in (trainer.model, policy):
            model.load_state_dict(reference.state_dict())
        trainer.ref_model.load_state_dict(plain(tiny.sft).state_dict())
        reference = plain(tiny.sft)
    rows = [ROWS[index] for index in trainer.plan.batch(0)]
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    expected = kto_loss(policy, reference, rows, 0.02)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    assert_close(theirs, {name: p.grad for name, p in policy.named_parameters()}, rtol=1e-3, atol=1e-5)
    # Twins: the labels swapped, the KL of an answer to its own prompt, and the clamp where it works.
    assert loss.item() != pytest.approx(kto_loss(policy, reference, rows, 0.02, sign=-1).item(), rel=1e-3)
    unclamped = kto_loss(policy, reference, rows, 0.02, clamp=False).item()
    itself = kto_loss(policy, reference, rows, 0.02, shift=0).item()
    clamped = trainer._metrics["train"]["kl"] == [0.0]
    assert (loss.item() != pytest.approx(unclamped, rel=1e-4)) is clamped
    assert clamped or loss.item() != pytest.approx(itself, rel=1e-4)


@pytest.fixture(scope="module")
def trained(tiny: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("kto") / "one"
    return output, run(kto.STAGE, FIELDS, output, policy=tiny.sft, comparisons=tiny.comparisons)


def test_the_first_loss_is_a_half(trained: tuple[Path, dict[str, Any]], log_of: Any) -> None:
    first = log_of(trained[0])[0]
    assert (first["loss"], first["kl"]) == (pytest.approx(0.5, abs=1e-6), 0.0)
    assert log_of(trained[0])[-1]["loss"] < 0.5


def test_metrics_are_those_of_plain_transformers(
    trained: tuple[Path, dict[str, Any]], tiny: Any, plain: Any, logprob: Any
) -> None:
    tokenizer, before, after = AutoTokenizer.from_pretrained(str(tiny.sft)), plain(tiny.sft), plain(trained[0])
    rewards: dict[bool, list[float]] = {True: [], False: []}
    for line in (tiny.comparisons / "validation.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        best, worst = min(row["ranks"]), max(row["ranks"])
        prompt = [3, *tokenizer(row["messages"][0]["content"])["input_ids"], 4]
        for text, ended, rank in zip(row["answers"], row["finished"], row["ranks"], strict=True):
            answer = [*tokenizer(text)["input_ids"], *([0] if ended else [])]
            if best != worst and rank in (best, worst):
                with torch.no_grad():
                    reward = 0.1 * float(logprob(after, prompt, answer) - logprob(before, prompt, answer))
                rewards[rank == best].append(reward)
    good, bad = rewards[True], rewards[False]
    metrics = trained[1]
    assert (metrics["validation_desirable"], metrics["validation_undesirable"]) == (len(good), len(bad))
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad) / (len(good) * len(bad))
    assert metrics["validation_accuracy"] == pytest.approx(wins)
    assert metrics["validation_margin"] == pytest.approx(sum(good) / len(good) - sum(bad) / len(bad), abs=1e-6)
    reference = 0.1 * metrics["validation_kl"]
    losses = [1 / (1 + math.exp(g - reference)) for g in good] + [1 / (1 + math.exp(reference - b)) for b in bad]
    assert metrics["validation_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    json.dumps(metrics, allow_nan=False)


def test_label_metrics_by_hand() -> None:
    rows = [{"label": True}, {"label": True}, {"label": False}]
    metrics = label_metrics(rows, "v", 0.5, (2.0, 1.0), [1.0, -1.0, -1.0, 0.5, 0.5, 0.2])
    assert metrics["v_accuracy"] == 0.75  # one above, one equal
    assert metrics["v_margin"] == 1.0
    assert metrics["v_kl"] == pytest.approx(0.8)  # 1.2 / 3 = 0.4 of reward
    losses = [2 / (1 + math.exp(0.6)), 2 / (1 + math.exp(-1.4)), 1 / (1 + math.exp(1.4))]
    assert metrics["v_loss"] == pytest.approx(sum(losses) / 3)
    below = label_metrics(rows, "v", 0.5, (2.0, 1.0), [1.0, -1.0, -1.0, -0.5, -0.5, -0.2])
    assert below["v_kl"] == 0.0


def test_mismatched_answers_stay_in_their_circle_and_fit() -> None:
    pairs = [([3] * n, [10 + n] * (6 - n)) for n in (1, 2, 3, 4)]
    assert mismatched(pairs, 2, 1) == [[12] * 4, [11] * 4, [14] * 2, [13] * 2]
    assert mismatched(pairs, 4, 2) == [[13] * 3, [14] * 2, [11] * 3, [12] * 2]
    rows = [{"prompt_ids": prompt, "completion_ids": answer} for prompt, answer in pairs]
    assert KTOTrainer.arranged(rows, 2)[1]["KL_completion_ids"] == [11] * 4


def test_labels_of_a_ranking() -> None:
    ranking = {"encoded": [Encoded.prompt([3, 4]).followed_by([n]) for n in range(10, 15)], "ranks": [2, 1, 3, 1, 3]}
    rows = [kto.label_columns(row) for row in labels.label_rows(ranking)]
    assert [row["prompt_ids"] for row in rows] == [[3, 4]] * 4
    read = [(row["completion_ids"], row["label"]) for row in rows]
    assert read == [([11], True), ([12], False), ([13], True), ([14], False)]


def test_answers_are_measured_after_their_own_prompt_and_after_another() -> None:
    prompts = [Encoded.prompt([3] * n) for n in (1, 2, 3, 4)]
    rows = [{"encoded": prompt.followed_by([10 + len(prompt)])} for prompt in prompts]
    read = [row.tokens for row in label_answers(rows)]
    assert read[:4] == [[3, 11], [3, 3, 12], [3, 3, 3, 13], [3, 3, 3, 3, 14]]
    assert read[4:] == [[3, 13], [3, 3, 14], [3, 3, 3, 11], [3, 3, 3, 3, 12]]


def test_an_answer_that_was_cut_off_has_no_end(tiny: Any) -> None:
    tokenizer = loading.load_tokenizer(tiny.sft)
    folder, ranking = tiny.folder / "cut", {"messages": [{"role": "user", "content": "x"}], "ranks": [1, 2, 2]}
    folder.mkdir()
    ranking |= {"answers": ["a", "b", ""], "finished": [False, True, False]}  # type: ignore[dict-item]
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").write_text(json.dumps(ranking) + "\n", encoding="utf-8")
    train, held_out = labels.labelled_rows(None, 0.1, 0, [folder], tokenizer, 64, "kto")
    ids = [tokenizer(text)["input_ids"] for text in ("a", "b")]
    assert [row["encoded"].split()[1] for row in train] == [ids[0], [*ids[1], 0]]
    assert [row["label"] for row in train] == [True, False]
    assert train == held_out


def labelled(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_desirable_answer_gains(tiny: Any, run: Any, tmp_path: Path, plain: Any, logprob: Any) -> None:
    """Labelled data, with a row that is too long and the end-of-text on every answer."""
    rows = [
        {"prompt": f"Say {n}", "completion": f"{text} {n}", "label": text == "yes"}
        for n in range(20)
        for text in ("yes", "no")
    ]
    data = labelled(tmp_path, [{"prompt": "x", "completion": "long " * 99, "label": False}, *rows])
    options = {**FIELDS, "data": data, "epochs": 6, "learning_rate": 5e-3, "validate_every": 100}
    options["undesirable_weight"] = 1.2
    metrics = run(kto.STAGE, options, tmp_path / "one", policy=tiny.sft)
    assert (metrics["desirable"], metrics["undesirable"], metrics["steps"]) == (18, 18, 36)
    assert (metrics["validation_desirable"], metrics["validation_undesirable"]) == (2, 2)
    assert metrics["train_accuracy"] == metrics["validation_accuracy"] == 1.0
    tokenizer, before, after = AutoTokenizer.from_pretrained(str(tiny.sft)), plain(tiny.sft), plain(tmp_path / "one")
    prompt = [3, *tokenizer("Say 19")["input_ids"], 4]
    sides = [[*tokenizer(text)["input_ids"], 0] for text in ("yes 19", "no 19")]
    with torch.no_grad():
        yes, no = (float(logprob(after, prompt, ids) - logprob(before, prompt, ids)) for ids in sides)
    assert yes > no + 1


def test_refusals(tiny: Any, run: Any, tmp_path: Path) -> None:
    output, inputs = tmp_path / "one", {"policy": tiny.sft, "comparisons": tiny.comparisons}
    with pytest.raises(UserError, match=r"^kto\.data: no rankings; give `data`, or the input `comparisons`"):
        run(kto.STAGE, FIELDS, output, policy=tiny.sft)
    for name, value in (("beta", 0.0), ("kl_batch_size", 1), ("batch_size", 1), ("undesirable_weight", 0.0)):
        with pytest.raises(UserError, match=rf"kto\.{name}: "):
            run(kto.STAGE, {**FIELDS, name: value}, output, **inputs)
    with pytest.raises(UserError, match=r"^kto\.kl_batch_size: 4 does not divide batch_size 6; choose"):
        run(kto.STAGE, {**FIELDS, "kl_batch_size": 4}, output, **inputs)
    data = labelled(tmp_path, [{"prompt": "x", "completion": "a", "label": True}] * 20)
    with pytest.raises(UserError, match=r"^kto\.data: 18 of 18 answers of at most 64 tokens are desirable; give"):
        run(kto.STAGE, {**FIELDS, "data": data}, output, policy=tiny.sft)
