"""Features and class weights moving together: k classes in f dimensions.

With room for it, f >= k - 1, features collapse to their class means, and means and theta to one simplex
frame; with less, classes share dimensions. What holds of that, with weight decay and without?
References: Mixon, Parshall, Pi, arXiv 2011.11619 (unconstrained features); Jiang et al., arXiv
2310.05351 (more classes than dimensions).
"""
