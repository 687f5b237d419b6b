"""autotelic: vision-language models, robot policies and diffusion models that improve themselves.

They act, something judges what they did, they learn from the judgement, and a gate decides what
may stay. Import the room you need (``autotelic.trainers.loop``, ``autotelic.vla.policy`` ...);
this module itself imports nothing, so that the command line answers at once.
"""

__version__ = "0.1.0"
