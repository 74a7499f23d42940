"""Why do trained heads lean? The cosine of W_V W_O with theta^T along the training of nets of ours.

In trained transformers value circuits lean towards -theta^T, the side that descends the head's own
log-sum-exp. Each explanation of that predicts what becomes of the cosine if one thing is changed: the
start, weight decay, the task, or which circuits are trained at all.
"""
