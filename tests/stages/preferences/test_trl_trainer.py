"""What TRL's trainers read: our tokens, in our order, in batches that hold the answer and mask the prompt."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from gptlife.data.errors import UserError
from gptlife.data.tokens import encode_answer, encode_prompt
from gptlife.stages import dpo, kto
from gptlife.stages.modeling import loading
from gptlife.stages.preferences import trl_trainer
from gptlife.stages.preferences.rankings import encode

ANSWERS = [[7, 8, 9, 0], [11, 12], [13, 0]]
PAIRS = [
    {"prompt_ids": [3, 20, 21, 4], "chosen_ids": ANSWERS[0], "rejected_ids": ANSWERS[1]},
    {"prompt_ids": [3, 22, 4], "chosen_ids": ANSWERS[2], "rejected_ids": ANSWERS[0]},
]
LABELLED = [
    {"prompt_ids": [3, 20, 21, 4], "completion_ids": ANSWERS[0], "label": True},
    {"prompt_ids": [3, 22, 4], "completion_ids": ANSWERS[1], "label": False},
]


def rankings_of(tiny: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tiny.comparisons / "train.jsonl").read_text("utf-8").splitlines()]


def as_trl_reads(tiny: Any, messages: Any, chosen: str, rejected: str) -> dict[str, Any]:
    """A pair through TRL's own preparation."""
    import trl
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = loading.load_tokenizer(tiny.sft)
    sides = {"chosen": chosen, "rejected": rejected}
    row = {"prompt": messages, **{name: [{"role": "assistant", "content": text}] for name, text in sides.items()}}
    holder, settings = SimpleNamespace(_tokenizer=tokenizer), SimpleNamespace(dataset_num_proc=None, max_length=None)
    read = trl.DPOTrainer._prepare_dataset(holder, Dataset.from_list([row]), tokenizer, settings, "train")
    return {name: read[0][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}


def test_tokens_are_trls_where_trls_are_right(tiny: Any) -> None:
    tokenizer = loading.load_tokenizer(tiny.sft)
    for row in rankings_of(tiny)[:3]:
        (whole,) = encode([{**row, "finished": [True] * len(row["answers"])}], tokenizer, 64, "dpo.data", empty=False)
        best, worst = row["ranks"].index(min(row["ranks"])), row["ranks"].index(max(row["ranks"]))
        ours = dpo.pair_rows(whole, "best_worst")[0]
        assert as_trl_reads(tiny, row["messages"], row["answers"][best], row["answers"][worst]) == ours
        assert ours["prompt_ids"] == encode_prompt(tokenizer, row["messages"]).tokens
        assert ours["chosen_ids"] == encode_answer(tokenizer, row["answers"][best], True)
    # Where TRL's are not: an answer that was cut off, and a control token that a user spelt.
    cut = {"messages": [{"role": "user", "content": "x"}], "answers": ["a", "b"], "ranks": [1, 2]}
    (ranking,) = encode([{**cut, "finished": [False, True]}], tokenizer, 64, "dpo.data", empty=False)
    (ours,) = dpo.pair_rows(ranking, "all")
    theirs = as_trl_reads(tiny, cut["messages"], "a", "b")
    assert theirs["chosen_ids"] == [*ours["chosen_ids"], 0]
    assert theirs["rejected_ids"] == ours["rejected_ids"]
    spelt = [{"role": "user", "content": "<|assistant|>"}]
    assert as_trl_reads(tiny, spelt, "a", "b")["prompt_ids"] == [3, 4, 4]
    assert encode_prompt(tokenizer, spelt).tokens != [3, 4, 4]


def expect(batch: dict[str, Any], prefix: str, sides: list[tuple[list[int], list[int]]], pad: int) -> None:
    for index, (prompt, answer) in enumerate(sides):
        fill = batch[f"{prefix}input_ids"].shape[1] - len(prompt + answer)
        mask = [0] * len(prompt) + [1] * len(answer) + [0] * fill
        assert batch[f"{prefix}input_ids"][index].tolist() == prompt + answer + [pad] * fill
        assert batch[f"{prefix}completion_mask"][index].tolist() == mask
        assert batch[f"{prefix}attention_mask"][index].tolist() == [1] * len(prompt + answer) + [0] * fill


def test_pairs_are_chosen_then_rejected_with_the_prompt_masked(tiny: Any, trainer_of: Any) -> None:
    trainer = trainer_of(trl_trainer.DPOTrainer, dpo.STAGE, tiny.sft, PAIRS, dpo.loss_options(0.0))
    pad = trainer.processing_class.pad_token_id
    assert pad != trainer.processing_class.eos_token_id
    rows = [PAIRS[index] for index in trainer.plan.batch(0)]
    sides = [(row["prompt_ids"], row[name]) for name in ("chosen_ids", "rejected_ids") for row in rows]
    expect(next(iter(trainer.get_train_dataloader())), "", sides, pad)
    assert trainer.lengths == [14, 12]


def test_labelled_answers_come_with_the_answer_to_another_prompt(tiny: Any, trainer_of: Any) -> None:
    trainer = trainer_of(trl_trainer.KTOTrainer, kto.STAGE, tiny.sft, LABELLED, {})
    pad, batch = trainer.processing_class.pad_token_id, next(iter(trainer.get_train_dataloader()))
    rows = [LABELLED[index] for index in trainer.plan.batch(0)]
    expect(batch, "", [(row["prompt_ids"], row["completion_ids"]) for row in rows], pad)
    expect(batch, "KL_", [(rows[i]["prompt_ids"], rows[1 - i]["completion_ids"]) for i in (0, 1)], pad)
    assert batch["label"].tolist() == [row["label"] for row in rows]
    assert trainer.lengths == [8, 5]


def test_a_trl_that_reads_rows_in_another_way_is_refused(tiny: Any, trainer_of: Any) -> None:
    pairs = trainer_of(trl_trainer.DPOTrainer, dpo.STAGE, tiny.sft, PAIRS, dpo.loss_options(0.0))
    swapped = [{**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} for row in PAIRS]
    labelled = trainer_of(trl_trainer.KTOTrainer, kto.STAGE, tiny.sft, LABELLED, {})
    rows = trl_trainer.KTOTrainer.arranged(LABELLED, 2)
    turned = [{**row, "label": not row["label"]} for row in rows]
    own = [{**row, "KL_completion_ids": row["completion_ids"]} for row in rows]
    for trainer, right, wrong in ((pairs, PAIRS, swapped), (labelled, rows, turned), (labelled, rows, own)):
        trl_trainer.confirm(trainer, right)
        collate, place = trainer.data_collator, trainer.stage
        trainer.data_collator = lambda rows, collate=collate, wrong=wrong: collate(wrong)
        with pytest.raises(UserError, match=rf"^{place}: TRL .* reads its rows in another way; install trl==1\.16"):
            trl_trainer.confirm(trainer, right)
        trainer.data_collator = collate


def test_micro_batches_have_one_size() -> None:
    assert trl_trainer.micro_batch_size(6, 30, 4096) == 6
    assert [trl_trainer.micro_batch_size(6, 30, n) for n in (1, 100, 120, 200, 300)] == [1, 1, 2, 3, 3]
    config = SimpleNamespace(batch_size=12, kl_batch_size=6)
    assert [trl_trainer.KTOTrainer.micro_batch(config, n, []) for n in (1, 2, 3)] == [6, 3, 2]
    for processes in (4, 6):  # not as many each; one alone
        with pytest.raises(UserError, match=r"^kto\.kl_batch_size: 6 answers; give a divisor of batch_size \(12\)"):
            trl_trainer.KTOTrainer.micro_batch(config, processes, [])
