"""Answers computed in closed form from served rows: counterfactuals, effects and explanations.

    model       the published model
    rows        one user and n items, as they are served
    outcome     the terms of a score, and the expected outcome in a world
    effect      the effect of showing
    attributes  how attributes enter a row, and what other attributes would change
    do          an intervention compared with the world as it is
    intervals   the uncertainty of an answer
    support     refuses what was never observed
    abduction   what would have happened to an observed outcome
    explain     the score, divided into its terms

It needs only numpy and is vectorised over items; nothing here reads stores, learns or keeps state.
This file imports nothing.
"""
