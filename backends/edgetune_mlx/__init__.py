"""The Apple silicon backend."""
