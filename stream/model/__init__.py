"""What is learned and how: one law, and the drivers that run it.

    config   what can be chosen, and its defaults
    choice   which driver of the step runs, and why; gpu: what a GPU lacks
    tables   the memory: one packed row per user, item and attribute value
    step     the law in one interaction, and the driver that takes one after the other
    blocks   the drivers that take a block at a time, on threads of a CPU or on a GPU
    drivers  the driver that was chosen
    learner  Learner.step / set_attributes / rows / state / load

This file imports nothing: who needs only the configuration loads neither torch nor numba.
"""
