"""Experiments: each runs by `python -m experiments.NAME`; `--help` lists its flags."""
