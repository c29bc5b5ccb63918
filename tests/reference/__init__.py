"""The law of learning in float64, plain and slow: what every way of running a step is held to.

It is written from docs/model.md. The gradients are autograd's, of the loss as it is written there
(`loss`). A test of another way of running the step is these lines:

    reference = Reference(learner)
    pair = reference.draw(batch)
    update = learner.step(batch)
    told = reference.learn(batch, pair, block)
    assert not differences(reference, learner) + untold(told, update)

What is shared with the code under test, and so is not proved here: the layout of rows, the vector
that a new row begins with, and what happens at an update point to sums that are right
(`scalars.refresh`).
"""

from tests.reference.compare import differences, untold
from tests.reference.law import Reference, Told

__all__ = ["Reference", "Told", "differences", "untold"]
