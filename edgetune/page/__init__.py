"""The local page: all runs of a folder, live, on loopback and for the holder of its token alone.

Its process serves HTML and reads run folders. What needs a framework or much memory (training,
export, plans over rows, chat) is done by processes of their own.
"""
