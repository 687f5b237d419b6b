"""Gemma 3, a family of vision-language models with quirks, joined by a renderer for its model type.

autotelic run vlm/grpo --use examples/vlm_family.py --model google/gemma-3-4b-it --data questions.jsonl
"""

from autotelic.plugins import register
from autotelic.vlm.processing import ProcessorRenderer


@register("renderer", "gemma3")
class Gemma3Renderer(ProcessorRenderer):
    """Gemma 3: an image's tokens see each other in both directions, and a turn's end is not the end of the text."""

    end_of_turn = "<end_of_turn>"

    def token_inputs(self, ids, prompt):
        return {"token_type_ids": self.image_places(ids).long()}
