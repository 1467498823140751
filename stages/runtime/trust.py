"""What is read of a model from elsewhere: weights from safetensors alone, and no code of its own.

A pickle (`pytorch_model.bin`) can run anything when it is loaded, and so can Python files beside the weights. The first
is never read. The second are run only inside `trusting(True)`, which a stage enters where its recipe says
`trust_remote_code: true`; transformers' own default would ask at the keyboard, or on a cluster wait for an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from gptlife.data.errors import UserError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
"""Names of weights that are pickles."""
_TRUSTED: ContextVar[bool] = ContextVar("code beside a model is trusted", default=False)


@contextmanager
def trusting(code: bool) -> Iterator[None]:
    """Whether Python code that lies beside a model may run, inside."""
    token = _TRUSTED.set(code)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def trusted() -> bool:
    """`trust_remote_code` for transformers."""
    return _TRUSTED.get()


def refusal(path: Path, kind: str, error: Exception) -> UserError:
    """Why no `kind` (model, tokenizer) could be loaded from a directory, in one line that says what to do."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "custom code" in str(error):
        reason = "it needs code of its own, which is not run; read it, then say trust_remote_code: true in the recipe"
    elif kind == "model" and only_pickled(file.name for file in path.glob("*")):
        reason = "its weights are a pickle, which can run anything; save it with safetensors (model.save_pretrained)"
    return UserError(f"{path}: no {kind} can be loaded ({reason})")


def only_pickled(names: Iterable[str]) -> bool:
    """Whether weights are among these files, but none in safetensors."""
    endings = {Path(name).suffix for name in names}
    return ".safetensors" not in endings and any(ending[1:] in endings for ending in PICKLED)
