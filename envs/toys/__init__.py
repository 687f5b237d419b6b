"""Toy worlds: pictures of shapes, scenes of a grid, sums."""
