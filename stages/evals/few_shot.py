"""What a checkpoint can do besides answering: its loss on held-out text and its accuracy in few-shot tasks.

The alignment tax is the difference before and after alignment (Ouyang et al. 2022, section 4.2 and Table 14). Multiple
choice compares log-likelihoods a token (Brown et al. 2020, section 2.4). How likely the right choice is, is told beside
the accuracy: a task that every model solves still shows what alignment costs there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.stages.runtime.stage import Metrics

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gptlife.stages.evaluation import EvaluationConfig


def capabilities(
    config: EvaluationConfig, accelerator: Accelerator, model: Any, tokenizer: Any, output: Path
) -> Metrics:
    """Validation loss, and by few-shot task accuracy and the loss of the right choice.

    Raises:
        UserError: when `validation_length` is above the model's context.
    """
    import torch

    from gptlife.data.formats import choices
    from gptlife.stages.modeling.forward import SelectedLogits
    from gptlife.stages.modeling.lengths import row_length
    from gptlife.stages.training.lm import PackedRows, evaluate_lm
    from gptlife.stages.training.token_stream import token_stream

    found: Metrics = {}
    reader = SelectedLogits(model)
    if config.validation is not None:
        length = row_length(config.validation_length, model, "evaluation.validation_length")
        stream, _ = token_stream(config.validation, "evaluation.validation", tokenizer, output, accelerator)
        rows = PackedRows(stream, length)
        found |= evaluate_lm(reader, rows, accelerator, config.micro_batch_tokens)
    if config.choices is not None:
        with torch.no_grad():
            found |= few_shot(reader, tokenizer, choices(config.choices), config.micro_batch_tokens)
    return found


def few_shot(reader: Any, tokenizer: Any, items: list[dict[str, Any]], tokens_per_batch: int) -> Metrics:
    """By task: `few_shot`, the accuracy, and `few_shot_loss`, the right choice's loss in nats a token.

    The choice with the highest mean log-likelihood a token is the answer.
    """
    import torch

    from gptlife.data.packing import length_batches
    from gptlife.data.tokens import encode_texts
    from gptlife.reward.logprobs import selected_logprobs
    from gptlife.stages.training.lm import collate

    device = next(reader.parameters()).device
    queries = encode_texts(tokenizer, [item["query"] for item in items])
    options = [(i, text) for i, item in enumerate(items) for text in item["choices"]]
    encoded = encode_texts(tokenizer, [text for _, text in options])
    rows = [
        (queries[i] + tokens, [False] * len(queries[i]) + [True] * len(tokens))
        for (i, _), tokens in zip(options, encoded, strict=True)
    ]
    likelihood = [0.0] * len(rows)
    for group in length_batches([len(tokens) for tokens, _ in rows], tokens_per_batch=tokens_per_batch):
        batch = collate([rows[index] for index in group]).to(device)
        logits_NV = reader(batch.inputs, batch.select)
        logprobs_N = selected_logprobs(logits_NV, batch.targets["tokens"][batch.select], 1.0)
        owner_N = torch.nonzero(batch.select)[:, 0]
        sums_B = torch.zeros(len(group), device=device).index_add_(0, owner_N, logprobs_N)
        for index, value in zip(group, (sums_B / batch.select.sum(1)).tolist(), strict=True):
            likelihood[index] = value
    by_item: dict[int, list[float]] = {}
    for (i, _), value in zip(options, likelihood, strict=True):
        by_item.setdefault(i, []).append(value)
    right: dict[str, list[float]] = {}
    loss: dict[str, list[float]] = {}
    for i, item in enumerate(items):
        task, picked = str(item.get("task") or "choices"), max(range(len(by_item[i])), key=by_item[i].__getitem__)
        right.setdefault(task, []).append(picked == item["gold"])
        loss.setdefault(task, []).append(-by_item[i][item["gold"]])
    return {
        name: {task: sum(values) / len(values) for task, values in sorted(by_task.items())}
        for name, by_task in (("few_shot", right), ("few_shot_loss", loss))
    }
