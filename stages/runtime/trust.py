"""Trust in a model from elsewhere: its weights are read from safetensors only, and its Python code is not run.

A pickle (`pytorch_model.bin`) can run any code when it is loaded, and so can Python files beside the weights. Pickles
are never read. Python files run only inside `trusting(True)`, which a stage enters where its recipe says
`trust_remote_code: true`; the default of transformers asks at the keyboard, and waits for an answer on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from gptlife.data.errors import UserError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
"""File names of pickled weights."""
_TRUSTED: ContextVar[bool] = ContextVar("code beside a model is trusted", default=False)


@contextmanager
def trusting(code: bool) -> Iterator[None]:
    """Inside, Python code beside a model runs if `code` is true."""
    token = _TRUSTED.set(code)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def trusted() -> bool:
    """`trust_remote_code` for transformers."""
    return _TRUSTED.get()


def refusal(path: Path, kind: str, error: Exception) -> UserError:
    """The error for a directory from which no `kind` (model, tokenizer) can be loaded: the reason and what to do."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "custom code" in str(error):
        reason = "its code is not run; read it, then set trust_remote_code: true in the recipe"
    elif kind == "model" and only_pickled(file.name for file in path.glob("*")):
        reason = "its weights are a pickle, which can run any code; save it with safetensors (model.save_pretrained)"
    return UserError(f"{path}: no {kind} can be loaded ({reason})")


def only_pickled(names: Iterable[str]) -> bool:
    """Whether these files hold weights, but none in safetensors."""
    endings = {Path(name).suffix for name in names}
    return ".safetensors" not in endings and any(ending[1:] in endings for ending in PICKLED)
