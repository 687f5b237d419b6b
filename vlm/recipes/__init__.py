"""Published systems for models that speak, one file each."""
