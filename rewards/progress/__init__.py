"""Progress of a robot's episode: estimates, critics, and what they look at."""
