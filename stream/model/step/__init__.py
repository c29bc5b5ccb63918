"""The step of one interaction, written once, and the drivers that take it.

names         what its functions take: columns, tables, terms, rates, scratch
lanes         what the lanes that work on one row do together
compose       rows as they enter a score, with their attribute values
score         shown, as observed, withheld
exposure      who is shown what, and the propensity
outcome       weight, errors of both heads, doubly robust pairs
control       the arm of withheld items
popularity    an item's decayed count, and what is usual for it
account       what an interaction says of the global terms
rows, update  Adagrad, and the step of every row at once
interaction   one interaction up to its errors
sequential    the driver that takes one interaction after the other
"""
