"""Adapter files as the trainers write them, at reduced width, and the weights that each format's formula makes of them.

`formulas` has the formulas, in float64 and from the papers and trainers alone; `names` what each trainer calls a layer;
`rows` the table of both; `trial` applies a row by the code under test. Nothing here asks diffpipe, diffusers or peft
how a file is to be read.
"""
