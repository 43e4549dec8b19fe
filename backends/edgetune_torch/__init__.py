"""The CUDA and CPU backend: one torch code for both."""
