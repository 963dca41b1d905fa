"""Home: what Plumbline is, the first steps, and what was worked on last."""

from pages.widgets import chrome

chrome.header("Plumbline", "design language-model architectures, and measure whether the numbers are true")
