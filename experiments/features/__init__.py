"""Features that flow under a fixed multinomial regression, towards their true labels.

theta is fitted to real images; then the images move, dZ/dt = -dL/dZ, free or held by an anchor. How
fast does the loss fall, how do margins grow, and what becomes of the classes and of the images?
References: arXiv 2509.04653 (the flow); Soudry et al., arXiv 1710.10345 (directions of such flows).
"""
