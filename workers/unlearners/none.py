"""The baseline that does nothing."""

from __future__ import annotations

from workers.interfaces.unlearner import Erasure, Unlearned, Unlearner


class Nothing(Unlearner):
    """Leave the model alone: what fine-tuning does to a model that was never unlearned."""

    name = "none"
    seeded = False
    changes = False
    joint = True

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """No edit."""
        return Unlearned(())
