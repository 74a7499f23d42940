"""Iterating transformer blocks derived from multinomial regression, on clean and noisy images.

Does iterating the block improve classification? Rows: multinomial regression; attention only; MLP
only; attention + MLP; latent classes with attention only; each read out at every iteration, past
the trained depth too, trained without and with noise. Reference: arXiv 2509.04653.
"""
