"""The model: its parameters, the update that one interaction makes, and the drivers that run it.

    config    the settings and their defaults
    choice    selects the driver of the learning step; gpu: checks whether a GPU can be used
    tables    the parameters: one packed row per user, item and attribute value
    step      the update of one interaction, and the driver that applies it one by one
    blocks    the drivers that learn a block at a time, on threads of a CPU or on a GPU
    drivers   creates the selected driver
    learner   Learner.step / set_attributes / rows / state / load

This file imports nothing, so importing the configuration loads neither torch nor numba.
"""
