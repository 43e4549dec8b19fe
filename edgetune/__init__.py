"""Fine-tune an open language model on the machine you own."""

__version__ = "0.1.0"
