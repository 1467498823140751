"""Task `multiple_choice`: few-shot questions whose answer is the most likely of several continuations.

Choices are compared by mean log-likelihood per token (Brown et al. 2020, section 2.4). Beside the accuracy is the
loss of the right choice: it still shows what alignment costs where every model answers everything right.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, ClassVar

from gptlife.data.sources import Data
from gptlife.stages.evals.tasks.task import Task
from gptlife.stages.runtime.stage import Metrics

if TYPE_CHECKING:
    from gptlife.stages.evals.candidates import Candidate

Item = dict[str, Any]


class MultipleChoice(Task):
    """Task `multiple_choice`: few-shot questions with choices."""

    name: ClassVar[str] = "multiple_choice"
    choices: Data
    """Rows of query, choices, gold (the number of the right one) and task."""

    def run(self, candidate: Candidate) -> Metrics:
        """`few_shot`, accuracy by task; `few_shot_loss`, the right choice's loss by task, in nats per token."""
        from gptlife.data.forms import choices

        items = choices(self.choices)
        return by_task(items, mean_logprobs(candidate.reader, candidate.tokenizer, items, candidate.micro_batch_tokens))


def mean_logprobs(reader: Any, tokenizer: Any, items: list[Item], tokens_per_batch: int) -> list[list[float]]:
    """For each item and choice the mean log-probability per token of the choice behind the query.

    `reader` is a `SelectedLogits`.
    """
    import torch

    from gptlife.data.packing import length_batches
    from gptlife.data.tokens import Encoded, encode_texts
    from gptlife.reward.objective import selected_logprobs
    from gptlife.stages.training.lm import collate

    device = next(reader.parameters()).device
    queries = [Encoded.prompt(tokens) for tokens in encode_texts(tokenizer, [item["query"] for item in items])]
    options = [(i, text) for i, item in enumerate(items) for text in item["choices"]]
    encoded = encode_texts(tokenizer, [text for _, text in options])
    rows = [queries[i].followed_by(tokens) for (i, _), tokens in zip(options, encoded, strict=True)]
    means = [0.0] * len(rows)
    with torch.no_grad():
        for group in length_batches([len(row) for row in rows], tokens_per_batch=tokens_per_batch):
            batch = collate([rows[index] for index in group]).to(device)
            logits_NV = reader(batch.inputs, batch.select)
            logprobs_N = selected_logprobs(logits_NV, batch.targets["tokens"][batch.select], 1.0)
            row_N = torch.nonzero(batch.select)[:, 0]
            sums_B = torch.zeros(len(group), device=device).index_add_(0, row_N, logprobs_N)
            for index, value in zip(group, (sums_B / batch.select.sum(1)).tolist(), strict=True):
                means[index] = value
    by_item: list[list[float]] = [[] for _ in items]
    for (i, _), mean in zip(options, means, strict=True):
        by_item[i].append(mean)
    return by_item


def by_task(items: list[Item], logprobs: list[list[float]]) -> Metrics:
    """`few_shot` and `few_shot_loss` by the items' task; the first of equally likely choices is the answer."""
    right: dict[str, list[float]] = defaultdict(list)
    loss: dict[str, list[float]] = defaultdict(list)
    for item, means in zip(items, logprobs, strict=True):
        task = str(item.get("task") or "choices")
        right[task].append(means.index(max(means)) == item["gold"])
        loss[task].append(-means[item["gold"]])
    return {
        name: {task: sum(values) / len(values) for task, values in sorted(tasks.items())}
        for name, tasks in (("few_shot", right), ("few_shot_loss", loss))
    }
