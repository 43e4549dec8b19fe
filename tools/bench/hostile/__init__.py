"""Inputs that are hostile, odd or in the way, each with the exit code that it must come to."""
