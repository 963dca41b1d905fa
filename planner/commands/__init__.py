"""Commands of ``python -m planner``, each a function from options to data and text."""
