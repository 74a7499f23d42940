"""Every theorem, lemma, corollary and closed form of the theory, checked on random problems.

One row for each statement and check: the formula against automatic differentiation and central
differences, reduced flows against full ones, solves against closed forms, measured orders of the
integrators. In float64; the command fails if a row does. Reference: arXiv 2509.04653.
"""
