"""The whole way of a run: plan, train and record, then use what was trained.

Nothing is imported here: each command takes the part it needs, so that planning stays instant.
"""
