"""How fast: imr's ways to the same result against each other, in one process, on one core."""
