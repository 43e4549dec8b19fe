"""The forward pass of every model, written once over a small set of operations."""
