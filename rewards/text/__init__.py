"""Rewards of answers: verifiers, consensus, steps, code."""
