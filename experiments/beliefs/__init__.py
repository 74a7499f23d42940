"""Transformers trained on hidden Markov processes carry out constrained belief updates.

`python -m experiments.beliefs` trains small transformers on Mess3 processes, by the exact Bayes
predictions or by sampled tokens, and holds what they compute against what was predicted of it:
residual streams, attention patterns, value vectors, and where one head is not enough
(arXiv 2502.01954). Every claim stands beside a control that must fail it.
"""
