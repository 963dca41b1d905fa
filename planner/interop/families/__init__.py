"""One file a family of configurations (or a few close kin): its adapters are found by being defined here."""
