"""Answers from served rows alone, in closed form: what if shown, what if changed, and why.

    model     what the trainer says of its model
    rows      one user against n items, as they are served
    outcome   the paths of a score, and the expected outcome in a world
    effect    what showing changes
    attributes  how attributes enter a row, and what other attributes would change
    do        a world that is set against the world as it is
    intervals how far an answer may be off
    support   what was never observed is refused
    abduction what would have happened to this very outcome
    explain   the score, cut into its paths

numpy only, vectorised over items; nothing here reads, learns or remembers. This file imports
nothing.
"""
