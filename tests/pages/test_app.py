"""The entry: it lists the pages that exist, and starts without what only jobs need."""

from __future__ import annotations

import subprocess
import sys

from streamlit.testing.v1 import AppTest

from tests.pages.conftest import ROOT


def test_the_entry_opens_home() -> None:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30).run()
    assert not app.exception
    assert "No designs yet" in " ".join(element.proto.body for element in app.get("html"))


def test_drawing_the_studio_loads_no_torch_and_no_sympy() -> None:
    script = (
        "import sys\n"
        "from streamlit.testing.v1 import AppTest\n"
        "app = AppTest.from_file('pages/studio.py', default_timeout=60).run()\n"
        "assert not app.exception, app.exception\n"
        "print(sorted({'torch', 'triton', 'sympy', 'scipy', 'ray', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == "[]"
