"""Models that judge: asked yes or no, compared, or by a rubric."""
