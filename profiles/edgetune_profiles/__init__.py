"""Data only: what is published about models and devices, and the built-in model ``tiny``."""
