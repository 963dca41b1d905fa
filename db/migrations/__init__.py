"""The steps from an empty database to the present tables. ``HEAD`` is the last one; a test holds that it is."""

HEAD = "0003"
