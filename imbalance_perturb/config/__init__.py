"""What the user asked for: the settings, and the recipe that keeps them."""
