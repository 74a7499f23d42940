"""In-context learning as functional gradient descent: do trained nets carry it out?

`python -m experiments.incontext` holds linear self-attention nets, blocks of attention over examples
and standard transformers, trained on random tasks, against closed forms, tuned gradient descent, kernel
regression at its optimum and, if it is known, Bayes. Every claim stands beside a control that must
fail it, and is measured on tasks drawn apart from those on which anything was trained or chosen.
"""
