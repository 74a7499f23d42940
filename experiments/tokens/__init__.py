"""Tokens as particles: self-attention flows with and without the column term, up and down.

Where do tokens cluster, over (beta, t)? Eight flows: ordinary attention (row term) or the gradient
(row and column term), on the sphere or off it, down the log-sum-exp or up it. The flow of the row
term up, on the sphere, is the model of Geshkovski et al., arXiv 2312.10794, whose time is used here
for all eight: $t = \\beta t_{imr}$, where $t_{imr}$ is the time of `imr.closed_field`.
"""
