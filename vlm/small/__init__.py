"""The small default vision-language model, its training, and its second look at the small world."""
