"""Flows: vector fields, their solution by diffrax or in reduced coordinates, splittings, depth."""
