"""A trained model in two halves: each party keeps, saves and loads only its own share."""
