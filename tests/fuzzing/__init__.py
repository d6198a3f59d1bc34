"""Bad inputs for the commands, drawn from seeds: what to give, what is done to it, and what must then hold.

``PYTHONPATH=tests python -m fuzzing`` runs many of them, each in a process of its own that starts warm.
"""
