"""The learning step of one interaction, shared by all drivers, and the sequential driver.

names         arguments: columns, tables, global terms, rates, scratch memory
arguments     creates these from the configuration and from arrays
lanes         what the lanes that work on one row do together (1 on a CPU, 32 on a GPU)
link          the inverse of the logit link
compose       rows with the parts of their attribute values added
score         scores: if shown, as observed (the factual head), if withheld
exposure      the exposure model and the propensity
outcome       propensity weight, errors of both heads, doubly robust term
control       the arm of withheld items
popularity    an item's decayed count, and its running means
account       the contribution of an interaction to the global terms
rows, update  Adagrad, and the update of every row of an interaction
interaction   an interaction up to its errors
sequential    the driver that learns one interaction after the other
"""
