"""One page each, for a person with one minute: evaluation, drift."""
