"""The forward pass of every model, written once over the operations in :mod:`.ops`."""
