"""Model and images into prediction rows."""
