"""What is learned and how: one law, and the drivers that run it.

    config   what can be chosen, and its defaults
    choice   which driver of the step runs, and why; gpu: what a GPU lacks
    tables   the memory: one packed row per user, item and attribute value
    loop     the law, one event after the other, compiled
    waves    the same law in torch operations, on any device
    learner  Learner.step / set_attributes / rows / state / load

This file imports nothing: who needs only the configuration loads neither torch nor numba.
"""
