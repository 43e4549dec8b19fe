"""The mixers that are not attention: a file each, with its sizes and its text.

What another package does with a mixer is a file of the same name in its own ``mixers``.
"""
