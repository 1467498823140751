"""What kind of value was decoded: to Python a bool is a whole number too, and NaN is a float."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def is_int(value: Any) -> TypeGuard[int]:
    """Whether the value is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether the value is a finite number; True and False are not."""
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))
