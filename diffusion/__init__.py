"""Policies that draw: the denoiser of any diffusers pipeline as a policy, reward gradients, and recipes."""

from .. import __version__ as __version__
