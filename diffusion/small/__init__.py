"""The small default pipeline and its pretraining."""
