"""Tiny models of real classes with random weights, made offline in under a second each: for one's own tests."""
