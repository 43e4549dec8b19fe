"""GGUF files: llama.cpp's container of a model, with its tensors in quantized blocks."""
