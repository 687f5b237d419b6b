"""Recipes for diffusion models: one file per published system."""
