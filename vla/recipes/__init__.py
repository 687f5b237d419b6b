"""Recipes for robot policies: one file per published system."""
