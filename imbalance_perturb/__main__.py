"""``python -m imbalance_perturb``: the same as ``imbperturb``."""

from imbalance_perturb.cli.app import main

if __name__ == "__main__":
    main()
