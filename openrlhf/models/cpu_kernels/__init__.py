"""Kernels of our own for bfloat16 and float32 on the CPU, in C++, compiled on first use in a few seconds.

Each has a slower way in Python that computes the same and takes its place where it cannot be compiled.
"""
