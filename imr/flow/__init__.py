"""Flows: vector fields, solvers, reduced coordinates, splittings, depth; `imr` holds the names."""
