"""Attacks on runs: what is resumed must be what was never interrupted, bit for bit."""
