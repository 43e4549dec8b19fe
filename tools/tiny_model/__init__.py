"""How the built-in model `tiny` is made: a small world, a tokenizer, and a training run."""
