"""The command line of one stage: its arguments, its exit codes, and which exceptions become one line.

Exit codes: 0, 2 (something that the user can fix, in one line on stderr) or 130 (interrupted). Any other exception is a
bug, and keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gptlife.data.config import Config
from gptlife.data.errors import UserError
from gptlife.data.yaml_tables import apply_overrides, read_yaml
from gptlife.stages.runtime.notices import notice
from gptlife.stages.runtime.signals import handle_signals
from gptlife.stages.runtime.world import rank

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def run_command(
    name: str,
    config: type[Config],
    execute: Callable[[Mapping[str, Any], str], None],
    argv: Sequence[str] | None = None,
) -> None:
    """Read `--config`, apply the overrides, and call `execute(fields, the config file's path)`; may exit.

    Args:
        name: the stage's name, with which every message begins.
        config: the stage's config, for the help text and for what to lower when memory runs out.
    """
    parser = argparse.ArgumentParser(prog=f"gptlife.stages.{name}", description=config.__doc__)
    parser.add_argument("--config", required=True, type=Path, help="a stage.yaml: fields, inputs, output")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    arguments = parser.parse_args(argv)
    try:
        with handle_signals(name):
            execute(apply_overrides(read_yaml(arguments.config), arguments.overrides), str(arguments.config))
    except KeyboardInterrupt:
        _exit(name, 130, "interrupted; run the same command again to resume")
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        message = _message_of(error, config)
        if message is None:
            raise
        _exit(name, 2, message)


def _exit(name: str, code: int, message: str) -> NoReturn:
    if rank() == 0:
        named = message.startswith((f"{name}:", f"{name}."))
        notice(message if named else f"{name}: {message}")
    sys.exit(code)


def _message_of(error: Exception, config: type[Config]) -> str | None:
    """What to tell the user about an exception; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        if error.errno not in _DISK_ERRORS:
            return None
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; make room, or choose another place, and run again to resume"
    if "does not have a deterministic implementation" in str(error):
        return f"{str(error).splitlines()[0]} (set deterministic: false)"
    if not _out_of_memory(error):
        return None
    reason = (str(error).strip() or "MemoryError").split("\n")[0]
    return f"out of memory ({reason}); {_what_to_lower(config)}, and run again to resume"


def _out_of_memory(error: Exception) -> bool:
    """Whether Python, torch on a device, or torch on the CPU (whose error has no class of its own) lacks memory."""
    kind = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return kind or "can't allocate memory" in str(error)


def _what_to_lower(config: type[Config]) -> str:
    """Fields that cost memory and never change a result."""
    fields = [name for name in ("micro_batch_tokens", "generation_batch_size") if name in config.model_fields]
    more = ", or set gradient_checkpointing: true" if "gradient_checkpointing" in config.model_fields else ""
    return f"lower {' or '.join(fields)}{more}" if fields else "give it more memory"
