"""All that touches torch and DeepSpeed, and nothing that touches Ray.

Shape letters, the same everywhere: B examples, T events, D hidden size, H heads, V vocabulary size (padding and unknown
included), N negatives, K results, P positions with a target, F features of a history.
"""
