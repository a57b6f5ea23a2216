"""The engine over a cluster: Ray hands slices of the list to workers, and this process alone writes what comes back."""
