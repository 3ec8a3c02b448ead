"""An attacker: endless streams of hostile command lines and files, and a runner that says what is wrong with each.

A module here with `lines(rng, folder)` or `cases(rng, folder)` is part of the attack: see runner.py.
"""
