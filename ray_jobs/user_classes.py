"""Classes of users: those for whom the same rules hold, as they turn up.

Invariant: a class keeps its number, so that tables of classes only grow.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from model.eligibility import ItemRules
from ray_jobs.rules import RulePlan


class UserClasses:
    """Numbers classes of users by the rules that hold for them.

    Args:
        plan: rules of the run, as wide as the catalogue.
    """

    def __init__(self, plan: RulePlan) -> None:
        self.plan = plan
        self._numbers: dict[int, int] = {}
        self._rules = plan.of_classes(np.zeros(0, np.uint32))

    def of(self, user_ids: pa.Array, attributes: Callable[[], pa.Table]) -> tuple[np.ndarray, ItemRules]:
        """The class [U] of each user, and what rules say for all classes there are by now; see `RulePlan.held_by`."""
        held = self.plan.held_by(user_ids, attributes)
        new = [bits for bits in np.unique(held).tolist() if bits not in self._numbers]
        if new:
            self._numbers |= {bits: len(self._numbers) + place for place, bits in enumerate(new)}
            self._rules = self.plan.of_classes(np.array(list(self._numbers), np.uint32))
        kinds, places = np.unique(held, return_inverse=True)
        return np.array([self._numbers[bits] for bits in kinds.tolist()], np.int64)[places], self._rules
