"""Multinomial models: features in, logits out."""
