"""README.md is nbs/index.ipynb, as Markdown. `--check` compares and changes nothing."""
import re
import sys
from pathlib import Path

import nbformat

root = Path(__file__).parents[1]
sys.path.insert(0, str(root))
from mlgov_nb.files import write_atomic

nb = nbformat.read(root/"nbs"/"index.ipynb", as_version=4)
text = "\n\n".join(c.source for c in nb.cells if c.cell_type == "markdown") + "\n"
text = re.sub(r"\]\((images/|\w+/index\.ipynb\))", r"](nbs/\1", text)     # a link from nbs/, seen from the top folder
if "--check" in sys.argv:
    if (root/"README.md").read_text() != text: sys.exit("README.md is not what nbs/index.ipynb says; run `make readme`")
else: write_atomic(root/"README.md", text)
