"""Is the challenger better? Scenarios on slices and corruptions, metrics with intervals, and the gate's decision."""
