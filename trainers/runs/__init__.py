"""What a run leaves on disk and tells people: folder, checkpoints, callbacks, trackers, alarms, report."""
