"""Training the networks of a model folder: from nothing for the small demo model, or on a user's clips."""
