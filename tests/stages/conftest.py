"""What the stage tests share: small random models, outputs compared file by file, and a run that is cut short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def small() -> Callable[..., Any]:
    """`small("gpt2")`: a random causal LM of 50 entries, 64 positions, no dropout, far from uniform."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def build(kind: str = "gpt2", seed: int = 0) -> Any:
        torch.manual_seed(seed)
        sizes = {
            "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0, "attn_pdrop": 0.0,
                     "embd_pdrop": 0.0, "initializer_range": 0.3},
            "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
                      "max_position_embeddings": 64, "initializer_range": 0.3},
        }[kind]  # fmt: skip
        config = AutoConfig.for_model(kind, vocab_size=50, bos_token_id=0, eos_token_id=0, pad_token_id=1, **sizes)
        return AutoModelForCausalLM.from_config(config).eval()

    return build


@pytest.fixture
def cut_short(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`cut_short(step, call)`: `call()` with a checkpoint after every step, interrupted once `step` is logged.

    The interrupt falls between the log line of `step` and its checkpoint, so the step has to be taken again.
    """
    from gptlife.stages.runtime.metric_log import MetricLog
    from gptlife.stages.training.checkpoints import Checkpoints

    def cut(step: int, call: Callable[[], Any]) -> None:
        log = MetricLog.log

        def interrupted(self: MetricLog, number: int, *rest: Any) -> None:
            log(self, number, *rest)
            if number == step:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "due", lambda self: True)
            patch.setattr(MetricLog, "log", interrupted)
            with pytest.raises(KeyboardInterrupt):
                call()

    return cut


@pytest.fixture
def weights() -> Callable[[Path], dict[str, Any]]:
    """`weights(output)`: the tensors of its model.safetensors."""
    from safetensors.torch import load_file

    return lambda output: load_file(str(output / "model.safetensors"))


@pytest.fixture(scope="session")
def plain() -> Callable[[Path], Any]:
    """`plain(output)`: its causal LM as plain transformers loads it, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    return lambda path: AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def logprob() -> Callable[[Any, list[int], list[int]], Any]:
    """`logprob(model, prompt, answer)`: log p(answer | prompt), one token after the other, the row alone."""
    import torch

    def of(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
        logits_TV = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
        total = torch.zeros((), dtype=torch.float64)
        for position, token in enumerate(answer, len(prompt)):
            total = total + logits_TV[position - 1, token] - logits_TV[position - 1].logsumexp(0)
        return total

    return of


@pytest.fixture
def trainer_of(tiny: Any, tmp_path: Path) -> Callable[..., Any]:
    """`trainer_of(kind, STAGE, reference, rows, options, **fields)`: TRL's trainer on the tiny SFT, one batch."""
    from gptlife.data.config import decode
    from gptlife.stages.modeling import loading
    from gptlife.stages.preferences.trl_trainer import settings_of
    from gptlife.stages.training.setup import epochs

    def build(kind: Any, stage: Any, reference: Path, rows: list[Any], options: dict[str, Any], **fields: Any) -> Any:
        config = decode(stage.config, {"device": "cpu", "batch_size": len(rows), **fields}, stage.name)
        args = settings_of(kind, config, tmp_path, options)
        plan = epochs(config, len(rows), len(rows), 1, 0)
        model, tokenizer = loading.load_causal(tiny.sft), loading.load_tokenizer(tiny.sft)
        return kind(config, plan, args, model, loading.load_causal(reference), tokenizer, rows)

    return build


@pytest.fixture
def steps_of(tiny: Any) -> Callable[..., Any]:
    """`steps_of(PPO, PPOConfig, fields, output)`: (networks, trainer) of an online stage on the tiny life."""
    from gptlife.data.config import decode
    from gptlife.data.forms import prompts
    from gptlife.stages.rl.loop import Trainer
    from gptlife.stages.rl.networks import Networks
    from gptlife.stages.training.setup import accelerator_for

    def build(algorithm: Any, kind: Any, fields: dict[str, Any], output: Path) -> Any:
        config = decode(kind, {"device": "cpu", "track": [], **fields}, "online")
        output.mkdir()
        accelerator = accelerator_for(config, output)
        chosen = algorithm(config)
        networks = Networks(config, chosen.value_learning_rate, accelerator, output, tiny.sft, tiny.reward_model)
        return networks, Trainer(chosen, accelerator, networks, prompts(config.prompts, 0), output)

    return build


@pytest.fixture
def taken(steps_of: Callable[..., Any]) -> Callable[..., Any]:
    """`taken(PPO, PPOConfig, fields, output)`: a step whose optimizers do nothing.

    Gives (metrics, rollouts, experience, gradients of the policy).
    """

    def take(algorithm: Any, kind: Any, fields: dict[str, Any], output: Path) -> Any:
        from gptlife.stages.rl import loop

        networks, trainer = steps_of(algorithm, kind, fields, output)
        seen: dict[str, Any] = {}
        experience_of = trainer.algorithm.experience

        def experience(readings: Any, rollouts: Any, kl_coef: float) -> Any:
            seen["rollouts"], seen["experience"] = rollouts, experience_of(readings, rollouts, kl_coef)
            return seen["experience"]

        def keep(accelerator: Any, model: Any, max_norm: float, place: str) -> float:
            if model is networks.policy.reader:
                seen["gradients"] = {name: p.grad.clone() for name, p in networks.policy.model.named_parameters()}
            return 1.0

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer.algorithm, "experience", experience)
            patch.setattr(loop, "finite_norm", keep)
            patch.setattr(loop, "step_with", lambda optimizer: None)
            metrics, _ = trainer.step(0, 0.1)
        return metrics, seen["rollouts"], seen["experience"], seen["gradients"]

    return take
