"""The dashboard: ``streamlit run app.py``. It lists the pages that exist; what each shows stands in ``pages/``."""

import pathlib

import streamlit as st

from pages.widgets import chrome

PAGES = {
    "": [("home", "Home", "")],
    "Design": [("studio", "Studio", "studio"), ("gallery", "Gallery", "gallery")],
    "Plan": [
        ("sizing", "Sizing and fit", "sizing"),
        ("training_plan", "Training plan", "training_plan"),
        ("serving_plan", "Serving plan", "serving_plan"),
        ("sensitivity", "Sensitivity", "sensitivity"),
        ("hardware", "Hardware and cost", "hardware"),
    ],
    "Prove": [
        ("jobs", "Jobs", "jobs"),
        ("generate", "Prompt", "generate"),
        ("benchmarks", "Benchmarks", "benchmarks"),
        ("mechanics", "Mechanics", "mechanics"),
        ("kernels", "Kernels", "kernels"),
        ("ledger", "Ledger", "ledger"),
    ],
    "Decide": [
        ("compare", "Compare", "compare"),
        ("decisions", "Decisions", "decisions"),
    ],
}

st.set_page_config(
    page_title="Plumbline", page_icon="assets/theme-bob.svg", layout="wide", initial_sidebar_state="expanded"
)
folder = pathlib.Path(__file__).parent / "pages"
navigation = {
    group: [
        st.Page(folder / f"{name}.py", title=title, url_path=path, default=name == "home")
        for name, title, path in entries
        if (folder / f"{name}.py").exists()
    ]
    for group, entries in PAGES.items()
}
page = st.navigation({group: entries for group, entries in navigation.items() if entries}, expanded=True)
chrome.dress()
page.run()
