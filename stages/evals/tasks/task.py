"""What an evaluation task is: a config whose `run` measures one candidate."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from gptlife.data.config import Config
from gptlife.stages.runtime.stage import Metrics

if TYPE_CHECKING:
    from gptlife.stages.evals.candidates import Candidate


class Task(Config):
    """A measurement of every candidate; a task's name in the table `tasks` decides which fields it has."""

    name: ClassVar[str]
    """The key of the task in the config's table `tasks`."""

    @abstractmethod
    def run(self, candidate: Candidate) -> Metrics:
        """Estimates by metric: a number, {mean, low, high, n} (`bootstrap_mean`), or a table of either by group."""
