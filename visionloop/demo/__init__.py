"""The demo: a user's day with the loop, on real servers and real images. It does nothing that a user could not do."""
