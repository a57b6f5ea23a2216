"""Models that say everything by themselves: folders of timm and transformers, and their names on the hub."""
