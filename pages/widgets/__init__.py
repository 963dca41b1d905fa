"""What several pages draw. Start at :mod:`pages.widgets.chrome`; colours come from :mod:`pages.widgets.theme`."""
