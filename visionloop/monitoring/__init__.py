"""Does production still look like what the champion was trained for? Windows, drift, and the decision to retrain."""
