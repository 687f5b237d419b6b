"""Rewards of pictures: weightless scores, published models, the small world's judges."""
